"""Contents of the ridgelines page, computed from a snapshot. The callbacks call these functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from dash import html

from trustlens.errors import TrustlensError
from trustlens.figures.ridgelines import canvas
from trustlens.figures.ridgelines.words import out_of_view
from trustlens.schema import QUANTITIES
from trustlens_dashboard.components import empty
from trustlens_dashboard.components.grid import NUMBER
from trustlens_dashboard.library import Snapshot
from trustlens_dashboard.pages.ridgelines.readout import (
    cached_ridgelines,
    drawn_steps,
    nearest,
    step_rows,
    step_summary,
    values_at,
)
from trustlens_dashboard.selection import Selection

_LAYER: Final = {
    "field": "layer",
    "headerName": "Layer",
    "flex": 2,
    "minWidth": 180,
    "tooltipField": "layer",
    "filter": True,
}


@dataclass(frozen=True, slots=True)
class Slider:
    """The state of the step slider before an update: its value and its maximum."""

    value: int | None
    last: int | None


def picture(
    snapshot: Snapshot, search: str, scale: str, view: str, slider: Slider
) -> tuple[Any, ...]:
    """Return the ridgelines as JSON, the slider's properties, the formula and the message.

    The slider's properties are min, max, marks, value and disabled. A slider at its maximum moves
    to the new last step when the run has grown.
    """
    selection = Selection.parse(search)
    quantity = QUANTITIES[selection.quantity]
    formula = [
        html.Span(quantity.symbol, className="symbol"),
        html.Span(f"{quantity.title} = {quantity.formula}"),
    ]
    runs = snapshot.chosen_by_id(selection.a, selection.b)
    if not runs:
        return None, 0, 1, [], 0, True, formula, empty.message(empty.no_run(snapshot))
    try:
        data = cached_ridgelines(snapshot, list(runs.values()), selection.quantity, scale, view)
    except TrustlensError as error:
        return None, 0, 1, [], 0, True, formula, empty.message(str(error))
    steps = drawn_steps(data)
    low, high = (steps[0], steps[-1]) if steps else (0, 1)
    hidden = [(run.label, text) for run in data.runs if (text := out_of_view(data, run))]
    return (
        canvas.payload(data, list(runs)),
        low,
        max(high, low + 1),
        [{"value": value} for value in steps],
        _step_to_show(slider, steps),
        len(steps) < 2,
        formula,
        [html.P(f"{label}: {text}", className="out-of-view") for label, text in hidden],
    )


def _step_to_show(slider: Slider, steps: Sequence[int]) -> int:
    """Return the step nearest to the slider's value; the last step if the slider is at its maximum.

    Return the last step also if the slider has no value within the steps, and 0 without steps.
    """
    value = slider.value
    if not steps or not value or value == slider.last or not steps[0] <= value <= steps[-1]:
        return steps[-1] if steps else 0
    return nearest(steps, value) or steps[-1]


def numbers(snapshot: Snapshot, search: str, scale: str, view: str, step: int) -> tuple[Any, ...]:
    """Return the summaries of the runs at one step, and columns and rows of the table.

    For each run, the step is the one nearest to ``step`` at which the run has a ridge.
    """
    selection = Selection.parse(search)
    runs = snapshot.chosen(selection.a, selection.b)
    if not runs:
        return [], [_LAYER], []
    try:
        data = cached_ridgelines(snapshot, runs, selection.quantity, scale, view)
        steps = [nearest(run.steps, step) for run in data.runs]
        columns = [
            values_at(run, at, selection.quantity) for run, at in zip(runs, steps, strict=True)
        ]
    except TrustlensError as error:
        return empty.message(str(error)), [_LAYER], []
    summaries = [
        html.P(step_summary(run.name, at, column, selection.quantity))
        for run, at, column in zip(runs, steps, columns, strict=True)
    ]
    return (
        summaries,
        _headings(selection.quantity, [run.name for run in runs], steps),
        step_rows(columns),
    )


def _headings(
    quantity: str, names: Sequence[str], steps: Sequence[int | None]
) -> list[dict[str, Any]]:
    symbol = QUANTITIES[quantity].symbol
    columns: list[dict[str, Any]] = [_LAYER]
    for i, (name, step) in enumerate(zip(names, steps, strict=True)):
        at = "" if step is None else f" · step {step}"
        columns.append(
            {"field": f"value{i}", "headerName": f"{symbol} · {name}{at}", "flex": 1, **NUMBER}
        )
    if len(names) == 2:
        columns.append({"field": "ratio", "headerName": "B / A", "width": 120, **NUMBER})
    return columns
