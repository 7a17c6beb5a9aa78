"""Contents of the page of layers: functions of a snapshot, called by its callbacks."""

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
from trustlens_dashboard.components.graph import placed, sentence
from trustlens_dashboard.components.grid import NUMBER
from trustlens_dashboard.diagnosed import diagnosed
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
"""Quantities in the table of layers."""

OVER_TIME: Final = ("trust_ratio", "weight_norm", "direction_norm", "update_ratio")
"""Quantities of one layer over time; the chosen one stands first."""

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


def run_of(snapshot: Snapshot, search: str | None, which: str) -> Run | None:
    """Return the run A or B of the address; where there is no B, A."""
    selection = Selection.parse(search)
    runs = snapshot.chosen(selection.a, selection.b)
    if not runs:
        return None
    return runs[-1] if which == "b" else runs[0]


def choices(snapshot: Snapshot, search: str | None) -> list[dict[str, str]]:
    """Return the options of the switch between the two runs, by their names."""
    selection = Selection.parse(search)
    runs = snapshot.chosen(selection.a, selection.b)
    return [{"value": key, "label": run.name} for key, run in zip("ab", runs, strict=False)] or [
        {"value": "a", "label": "Run A"}
    ]


def overview(snapshot: Snapshot, search: str | None, which: str) -> tuple[Any, ...]:
    """Return verdict, findings, style of their box, title of the table, and its rows."""
    run = run_of(snapshot, search, which)
    if run is None:
        return empty.no_run(snapshot), [], {"display": "none"}, "", []
    try:
        findings = diagnosed(snapshot, run)
        rows = table_rows(run, findings)
        words = verdict(findings, run)
        last = run.last_step
    except TrustlensError as error:
        return str(error), [], {"display": "none"}, "", []
    bad = len(findings) > 0
    return (
        html.Span(words, className="verdict-bad" if bad else "verdict-good"),
        finding_rows(findings),
        {} if bad else {"display": "none"},
        f"The layers of {run.name} at step {last}" if last else f"The layers of {run.name}",
        rows,
    )


def finding_rows(findings: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the findings as JSON can hold them: an infinite score is text."""
    return [
        {**row, "score": row["score"] if np.isfinite(row["score"]) else "∞"}
        for row in findings.to_dict("records")
    ]


def table_rows(run: Run, findings: pd.DataFrame) -> list[dict[str, Any]]:
    """Return one row a layer with its values at the last recorded step; unknown ones are None."""
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


def picture(
    snapshot: Snapshot, search: str | None, which: str, theme: ThemeName
) -> tuple[Any, dict[str, str]]:
    """Return the heatmap and the style of its place."""
    run = run_of(snapshot, search, which)
    if run is None:
        return sentence(empty.no_run(snapshot), theme), {"height": "200px"}
    try:
        figure = heatmap(run, Selection.parse(search).quantity, theme=theme)
    except TrustlensError as error:
        figure = sentence(str(error), theme)
    return placed(figure, which, search)


def over_time(
    snapshot: Snapshot, search: str | None, layer: str | None, theme: ThemeName
) -> tuple[Any, dict[str, str]]:
    """Return one layer's curves in both runs, and the style of their place."""
    selection = Selection.parse(search)
    runs = snapshot.chosen(selection.a, selection.b)
    if not runs or layer is None:
        return sentence("There is no layer to show.", theme), {"height": "200px"}
    names = list(dict.fromkeys((selection.quantity, *OVER_TIME)))[: len(OVER_TIME)]
    try:
        figure = curves(runs, names, layer=layer, theme=theme)
    except TrustlensError as error:
        figure = sentence(str(error), theme)
    return placed(figure, layer, search)


def layer_options(
    snapshot: Snapshot, search: str | None, chosen: str | None
) -> tuple[Any, str | None]:
    """Return the layers of both runs as options, and the chosen one if it is there, else one.

    Without a choice it is the most suspect layer, or the first.
    """
    selection = Selection.parse(search)
    runs = snapshot.chosen(selection.a, selection.b)
    names = list(dict.fromkeys(name for run in runs for name in run.layer_names))
    if chosen not in names:
        chosen = next((layer for run in runs for layer in _suspects(snapshot, run)), None)
        chosen = chosen or (names[0] if names else None)
    return names, chosen


def _suspects(snapshot: Snapshot, run: Run) -> list[str]:
    try:
        return [str(name) for name in diagnosed(snapshot, run)["layer"]]
    except TrustlensError:
        return []


def pick(
    snapshot: Snapshot, search: str | None, event: Any, layer: str | None
) -> tuple[Any, str | None]:
    """Return the options of layers, and the layer that was clicked on, else the one given."""
    return layer_options(snapshot, search, clicked(snapshot, search, event) or layer)


def clicked(snapshot: Snapshot, search: str | None, event: Any) -> str | None:
    """Return the layer that a click on the heatmap or in a table speaks of, or None."""
    if not event:
        return None
    if "rowId" in event:
        return str(event["rowId"])
    shown = str(event["points"][0]["y"])
    names, _ = layer_options(snapshot, search, None)
    return next((name for name in names if plain(name) == shown), None)
