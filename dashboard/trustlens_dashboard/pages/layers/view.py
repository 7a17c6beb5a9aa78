"""Contents of the layers page, computed from a snapshot. The callbacks call these functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from dash import html

from trustlens.analysis.diagnose import verdict
from trustlens.analysis.run import Run
from trustlens.errors import TrustlensError
from trustlens.figures._curves import curves
from trustlens.figures._heatmap import heatmap
from trustlens.figures.theme import ThemeName, plain
from trustlens.schema import QUANTITIES
from trustlens_dashboard.components import empty
from trustlens_dashboard.components.graph import message_figure, with_style
from trustlens_dashboard.components.grid import NUMBER
from trustlens_dashboard.findings import cached_findings
from trustlens_dashboard.library import Snapshot
from trustlens_dashboard.selection import Selection

TABLE: Final = (
    "trust_ratio",
    "weight_norm",
    "direction_norm",
    "update_norm",
    "update_ratio",
    "grad_norm",
    "nonfinite",
)
"""Quantities that are columns of the table of layers."""

OVER_TIME: Final = ("trust_ratio", "weight_norm", "direction_norm", "update_ratio")
"""Quantities that are drawn for one layer over time, after the selected quantity."""

TABLE_COLUMNS: Final[Sequence[Mapping[str, Any]]] = (
    {"field": "layer", "headerName": "Layer", "flex": 2, "minWidth": 170, "tooltipField": "layer",
     "filter": True, "pinned": "left"},
    {"field": "finding", "headerName": "Finding", "flex": 1, "minWidth": 130,
     "cellClassRules": {"verdict-bad": "params.value !== ''"}},
    {"field": "shape", "headerName": "Shape", "flex": 1, "minWidth": 110},
    *(
        {"field": name, "headerName": QUANTITIES[name].symbol, "flex": 1, "minWidth": 96,
         "headerTooltip": f"{QUANTITIES[name].title}: {QUANTITIES[name].formula}", **NUMBER}
        for name in TABLE
    ),
)  # fmt: skip


def selected_run(snapshot: Snapshot, search: str | None, a_or_b: str) -> Run | None:
    """Return run A or run B of the URL; run A if no run B is selected."""
    selection = Selection.parse(search)
    runs = snapshot.chosen(selection.a, selection.b)
    if not runs:
        return None
    return runs[-1] if a_or_b == "b" else runs[0]


def run_options(snapshot: Snapshot, search: str | None) -> list[dict[str, str]]:
    """Return the options of the switch between run A and run B, labelled with their names."""
    selection = Selection.parse(search)
    runs = snapshot.chosen(selection.a, selection.b)
    return [{"value": key, "label": run.name} for key, run in zip("ab", runs, strict=False)] or [
        {"value": "a", "label": "Run A"}
    ]


def overview(snapshot: Snapshot, search: str | None, a_or_b: str) -> tuple[Any, ...]:
    """Return the verdict, the findings and the table of layers.

    The five values are the verdict, the rows of findings, the CSS style of the box with the
    findings, and the title and the rows of the table.
    """
    run = selected_run(snapshot, search, a_or_b)
    if run is None:
        return empty.no_run(snapshot), [], {"display": "none"}, "", []
    try:
        findings = cached_findings(snapshot, run)
        rows = table_rows(run, findings)
        text = verdict(findings, run)
        last = run.last_step
    except TrustlensError as error:
        return str(error), [], {"display": "none"}, "", []
    suspicious = len(findings) > 0
    return (
        html.Span(text, className="verdict-bad" if suspicious else "verdict-good"),
        finding_rows(findings),
        {} if suspicious else {"display": "none"},
        f"The layers of {run.name} at step {last}" if last else f"The layers of {run.name}",
        rows,
    )


def finding_rows(findings: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the findings as rows for JSON: an infinite score becomes the text "∞"."""
    return [
        {**row, "score": row["score"] if np.isfinite(row["score"]) else "∞"}
        for row in findings.to_dict("records")
    ]


def table_rows(run: Run, findings: pd.DataFrame) -> list[dict[str, Any]]:
    """Return one row per layer with the layer's values at the last recorded step.

    A value that is not finite is None.
    """
    span = run.span("layers")
    frame = None if span is None else run.layers(TABLE, steps=[span[1]]).set_index("layer")
    found = {
        row["layer"]: f"{row['kind']} from {row['step']}" for row in findings.to_dict("records")
    }
    rows: list[dict[str, Any]] = []
    for layer in run.info.layers:
        row: dict[str, Any] = {
            "layer": layer.name,
            "shape": " × ".join(map(str, layer.shape)) or "scalar",
            "finding": found.get(layer.name, ""),
        }
        if frame is not None and layer.name in frame.index:
            values = frame.loc[layer.name, list(TABLE)].to_numpy(np.float64)
            row.update({name: float(v) if np.isfinite(v) else None
                        for name, v in zip(TABLE, values, strict=True)})  # fmt: skip
        rows.append(row)
    return rows


def heatmap_figure(
    snapshot: Snapshot, search: str | None, a_or_b: str, theme: ThemeName
) -> tuple[Any, dict[str, str]]:
    """Return the heatmap and its style."""
    run = selected_run(snapshot, search, a_or_b)
    if run is None:
        return message_figure(empty.no_run(snapshot), theme), {"height": "200px"}
    try:
        figure = heatmap(run, Selection.parse(search).quantity, theme=theme)
    except TrustlensError as error:
        figure = message_figure(str(error), theme)
    return with_style(figure, a_or_b, search)


def over_time(
    snapshot: Snapshot, search: str | None, layer: str | None, theme: ThemeName
) -> tuple[Any, dict[str, str]]:
    """Return a figure with one layer's curves in both runs, and its style."""
    selection = Selection.parse(search)
    runs = snapshot.chosen(selection.a, selection.b)
    if not runs or layer is None:
        return message_figure("There is no layer to show.", theme), {"height": "200px"}
    names = list(dict.fromkeys((selection.quantity, *OVER_TIME)))[: len(OVER_TIME)]
    try:
        figure = curves(runs, names, layer=layer, theme=theme)
    except TrustlensError as error:
        figure = message_figure(str(error), theme)
    return with_style(figure, layer, search)


def layer_options(
    snapshot: Snapshot, search: str | None, chosen: str | None
) -> tuple[Any, str | None]:
    """Return the names of the layers of both runs, and the layer to show.

    The layer to show is ``chosen`` if one of the runs has this layer, else the first layer with a
    finding, else the first layer. It is None if there are no layers.
    """
    selection = Selection.parse(search)
    runs = snapshot.chosen(selection.a, selection.b)
    names = list(dict.fromkeys(name for run in runs for name in run.layer_names))
    if chosen not in names:
        chosen = next((layer for run in runs for layer in _suspicious_layers(snapshot, run)), None)
        chosen = chosen or (names[0] if names else None)
    return names, chosen


def _suspicious_layers(snapshot: Snapshot, run: Run) -> list[str]:
    try:
        return [str(name) for name in cached_findings(snapshot, run)["layer"]]
    except TrustlensError:
        return []


def choose_layer(
    snapshot: Snapshot, search: str | None, event: Any, layer: str | None
) -> tuple[Any, str | None]:
    """Return the names of the layers, and the layer to show.

    The layer to show is the clicked layer, or ``layer`` if no click triggered the callback.
    """
    return layer_options(snapshot, search, clicked_layer(snapshot, search, event) or layer)


def clicked_layer(snapshot: Snapshot, search: str | None, event: Any) -> str | None:
    """Return the layer of a click event of the heatmap or a table; None without an event."""
    if not event:
        return None
    if "rowId" in event:
        return str(event["rowId"])
    shown = str(event["points"][0]["y"])
    names, _ = layer_options(snapshot, search, None)
    return next((name for name in names if plain(name) == shown), None)
