"""What the ridgelines page's callbacks return."""

from __future__ import annotations

from typing import Any

from dash import html

from dashboard.components import empty
from dashboard.components.grid import NUMBER
from dashboard.components.ridgeline_payload import payload
from dashboard.components.ridgeline_view import (
    drawn_steps,
    nearest,
    out_of_view,
    picture_in_words,
    step_in_words,
    step_rows,
    view,
)
from dashboard.library import Library
from dashboard.selection import Selection
from trustlens.errors import TrustlensError
from trustlens.schema import QUANTITIES


def picture(
    library: Library, search: str, scale: str, reach: str, step: int | None, last: int | None
) -> tuple[Any, ...]:
    """Return payload, slider (min, max, marks, value, disabled), formula and message.

    A slider that stood at the last step stays there when more are recorded.
    """
    selection = Selection.parse(search)
    measured = QUANTITIES[selection.quantity]
    formula = [
        html.Span(measured.symbol, className="symbol"),
        html.Span(f"{measured.title} = {measured.formula}"),
    ]
    run_ids = [run_id for run_id in (selection.a, selection.b) if run_id]
    runs = library.chosen(*run_ids)
    if not runs:
        return None, 0, 1, [], 0, True, formula, empty.sentence("Choose a run above.")
    try:
        data = view(runs, selection.quantity, scale, reach)
    except TrustlensError as error:
        return None, 0, 1, [], 0, True, formula, empty.sentence(str(error))
    steps = drawn_steps(data)
    low, high = (steps[0], steps[-1]) if steps else (0, 1)
    follow = step is None or not low <= step <= high or step == last or step == 0
    chosen = high if follow else nearest(steps, step or 0)
    words = [picture_in_words(data, run) for run in data.runs]
    hidden = [
        html.P(f"{run.label}: {text}", className="out-of-view")
        for run in data.runs
        if (text := out_of_view(data, run))
    ]
    return (
        payload(data, [i for i in run_ids if library.find(i)], words),
        low,
        max(high, low + 1),
        [{"value": value} for value in steps],
        chosen if steps else 0,
        len(steps) < 2,
        formula,
        hidden,
    )


def numbers(library: Library, search: str, scale: str, reach: str, step: int) -> tuple[Any, ...]:
    """Return the summary, the columns and the rows of the table for one step."""
    selection = Selection.parse(search)
    runs = library.chosen(selection.a, selection.b)
    if not runs:
        return [], [{"field": "layer", "headerName": "Layer"}], []
    try:
        data = view(runs, selection.quantity, scale, reach)
        steps = [nearest(run.steps, step) for run in data.runs]
        rows = step_rows(runs, steps, selection.quantity)
    except TrustlensError as error:
        return empty.sentence(str(error)), [{"field": "layer", "headerName": "Layer"}], []
    symbol = QUANTITIES[selection.quantity].symbol
    words = [
        html.P(step_in_words(run.name, at, [row[f"value{i}"] for row in rows if row["layer"] in run.layer_names], selection.quantity))
        for i, (run, at) in enumerate(zip(runs, steps, strict=True))
    ]
    columns: list[dict[str, Any]] = [
        {"field": "layer", "headerName": "Layer", "flex": 2, "minWidth": 180, "tooltipField": "layer", "filter": True}
    ]
    for i, (run, at) in enumerate(zip(runs, steps, strict=True)):
        title = f"{symbol} · {run.name}" + (f" · step {at}" if at is not None else "")
        columns.append({"field": f"value{i}", "headerName": title, "flex": 1, **NUMBER})
    if len(runs) == 2:
        columns.append({"field": "ratio", "headerName": "B / A", "flex": 1, "maxWidth": 140, **NUMBER})
    return words, columns, rows
