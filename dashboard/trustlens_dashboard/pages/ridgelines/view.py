"""Contents of the page of ridgelines: functions of a snapshot, called by its callbacks."""

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
    drawn_steps,
    nearest,
    step_in_words,
    step_rows,
    values_at,
    view,
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
    """The step slider before an update: its value and its last step."""

    value: int | None
    last: int | None


def picture(
    snapshot: Snapshot, search: str, scale: str, reach: str, slider: Slider
) -> tuple[Any, ...]:
    """Return payload, slider (min, max, marks, value, disabled), formula and message.

    A slider at the last step stays at the last step when more are recorded.
    """
    selection = Selection.parse(search)
    measured = QUANTITIES[selection.quantity]
    formula = [
        html.Span(measured.symbol, className="symbol"),
        html.Span(f"{measured.title} = {measured.formula}"),
    ]
    runs = snapshot.chosen_by_id(selection.a, selection.b)
    if not runs:
        return None, 0, 1, [], 0, True, formula, empty.sentence(empty.no_run(snapshot))
    try:
        data = view(snapshot, list(runs.values()), selection.quantity, scale, reach)
    except TrustlensError as error:
        return None, 0, 1, [], 0, True, formula, empty.sentence(str(error))
    steps = drawn_steps(data)
    low, high = (steps[0], steps[-1]) if steps else (0, 1)
    hidden = [(run.label, text) for run in data.runs if (text := out_of_view(data, run))]
    return (
        canvas.payload(data, list(runs)),
        low,
        max(high, low + 1),
        [{"value": value} for value in steps],
        _step(slider, steps),
        len(steps) < 2,
        formula,
        [html.P(f"{label}: {text}", className="out-of-view") for label, text in hidden],
    )


def _step(slider: Slider, steps: Sequence[int]) -> int:
    """Return the step to show: the nearest to the slider's, or the last if it was at its end."""
    stood = slider.value
    if not steps or not stood or stood == slider.last or not steps[0] <= stood <= steps[-1]:
        return steps[-1] if steps else 0
    return nearest(steps, stood) or steps[-1]


def numbers(snapshot: Snapshot, search: str, scale: str, reach: str, step: int) -> tuple[Any, ...]:
    """Return the summary, the columns and the rows of the table for one step."""
    selection = Selection.parse(search)
    runs = snapshot.chosen(selection.a, selection.b)
    if not runs:
        return [], [_LAYER], []
    try:
        data = view(snapshot, runs, selection.quantity, scale, reach)
        steps = [nearest(run.steps, step) for run in data.runs]
        columns = [
            values_at(run, at, selection.quantity) for run, at in zip(runs, steps, strict=True)
        ]
    except TrustlensError as error:
        return empty.sentence(str(error)), [_LAYER], []
    words = [
        html.P(step_in_words(run.name, at, column, selection.quantity))
        for run, at, column in zip(runs, steps, columns, strict=True)
    ]
    return (
        words,
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
