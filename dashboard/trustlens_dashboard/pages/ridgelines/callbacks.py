"""Callbacks of the ridgelines page."""

from __future__ import annotations

from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, no_update

from trustlens_dashboard.frame import ids as frame
from trustlens_dashboard.library import Library
from trustlens_dashboard.pages.ridgelines import ids
from trustlens_dashboard.pages.ridgelines import view as page


def register(app: Dash, library: Library) -> None:
    """Register the page's callbacks."""

    @app.callback(
        Output(ids.DATA, "data"),
        Output(ids.STEP_SLIDER, "min"),
        Output(ids.STEP_SLIDER, "max"),
        Output(ids.STEP_SLIDER, "marks"),
        Output(ids.STEP_SLIDER, "value"),
        Output(ids.STEP_SLIDER, "disabled"),
        Output(ids.FORMULA, "children"),
        Output(ids.MESSAGE, "children"),
        Input(frame.URL, "search"),
        Input(frame.CURSOR, "data"),
        Input(ids.SCALE, "value"),
        Input(ids.VIEW, "value"),
        State(ids.STEP_SLIDER, "value"),
        State(ids.STEP_SLIDER, "max"),
    )
    def draw(search: str, _cursor: Any, scale: str, view: str, step: int, last: int) -> Any:
        return page.picture(library.snapshot(), search, scale, view, page.Slider(step, last))

    @app.callback(
        Output(ids.STEP_SUMMARY, "children"),
        Output(ids.STEP_GRID, "columnDefs"),
        Output(ids.STEP_GRID, "rowData"),
        Input(ids.STEP, "data"),
        State(frame.URL, "search"),
        State(ids.SCALE, "value"),
        State(ids.VIEW, "value"),
    )
    def numbers(step: Any, search: str, scale: str, view: str) -> Any:
        return (
            page.numbers(library.snapshot(), search, scale, view, step)
            if step
            else (no_update,) * 3
        )

    app.clientside_callback(
        ClientsideFunction("trustlens", "showRidgelines"),
        Input(ids.DATA, "data"),
        Input(ids.STEP_SLIDER, "value"),
        State(ids.RIDGELINES, "id"),
        State(ids.STEP, "id"),
    )
