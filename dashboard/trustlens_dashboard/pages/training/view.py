"""Contents of the training page, computed from a snapshot. The callbacks call these functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np

from trustlens.analysis.run import Run
from trustlens.errors import TrustlensError
from trustlens.figures._curves import curves
from trustlens.figures.theme import ThemeName
from trustlens_dashboard.components import empty
from trustlens_dashboard.components.graph import message_figure, with_style
from trustlens_dashboard.library import Snapshot
from trustlens_dashboard.selection import Selection


def options(snapshot: Snapshot, search: str | None) -> list[dict[str, str]]:
    """Return the runs other than A and B as options."""
    selection = Selection.parse(search)
    return [
        {"value": entry.id, "label": entry.run.label}
        for entry in snapshot.entries
        if entry.run is not None and entry.id not in (selection.a, selection.b)
    ]


def picture(
    snapshot: Snapshot,
    search: str | None,
    *,
    more: Sequence[str] | None,
    names: Sequence[str] | None,
    scale: str,
    theme: ThemeName,
) -> tuple[Any, ...]:
    """Return the figure, its style, the names of the metrics, and the rows of the table."""
    runs = _runs(snapshot, search, more)
    if not runs:
        return message_figure(empty.no_run(snapshot), theme), {"height": "200px"}, [], []
    try:
        rows = [row for run in runs for row in table_rows(run)]
        logged = list(dict.fromkeys(str(row["name"]) for row in rows))
        chosen = [name for name in names or () if name in logged] or None
        figure = curves(
            runs, chosen, scale=cast("Literal['auto', 'log', 'linear']", scale), theme=theme
        )
    except TrustlensError as error:
        return *with_style(message_figure(str(error), theme)), [], []
    return *with_style(figure, search, more, names, scale), logged, rows


def _runs(snapshot: Snapshot, search: str | None, more: Sequence[str] | None) -> list[Run]:
    selection = Selection.parse(search)
    return snapshot.chosen(*dict.fromkeys((selection.a, selection.b, *(more or ()))))


def table_rows(run: Run) -> list[dict[str, Any]]:
    """Return one row per metric: its last, lowest and highest value.

    ``nonfinite`` counts the values that are infinite or NaN.
    """
    rows: list[dict[str, Any]] = []
    for name, part in run.metrics().groupby("name", sort=False):
        values = part["value"].to_numpy(np.float64)
        finite = values[np.isfinite(values)]
        rows.append(
            {
                "key": f"{run.path.name} {name}",
                "run": run.label,
                "name": str(name),
                "step": int(part["step"].iloc[-1]),
                "last": float(values[-1]) if np.isfinite(values[-1]) else None,
                "lowest": float(finite.min()) if finite.size else None,
                "highest": float(finite.max()) if finite.size else None,
                "nonfinite": int(values.size - finite.size),
            }
        )
    return rows
