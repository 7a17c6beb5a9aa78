"""Callbacks of the runs page."""

from __future__ import annotations

from typing import Any

from dash import Dash, Input, Output, State

from trustlens_dashboard.frame import ids as frame
from trustlens_dashboard.library import Library
from trustlens_dashboard.pages.runs import ids
from trustlens_dashboard.pages.runs import view as page


def register(app: Dash, library: Library) -> None:
    """Register the page's callbacks."""

    @app.callback(
        Output(ids.GRID, "rowData"),
        Output(ids.VERSION, "data"),
        Output(ids.EMPTY, "children"),
        Output(ids.BOX, "style"),
        Input(frame.TICK, "n_intervals"),
        State(ids.VERSION, "data"),
    )
    def update_rows(_tick: int, known: Any) -> Any:
        return page.update_rows(library.snapshot(), known)

    @app.callback(
        Output(frame.URL, "search", allow_duplicate=True),
        Input(ids.GRID, "selectedRows"),
        State(frame.URL, "search"),
        prevent_initial_call=True,
    )
    def select_runs(ticked: Any, search: str) -> Any:
        return page.select_runs(search, ticked)

    @app.callback(
        Output(ids.GRID, "selectedRows"),
        Output(ids.CHOSEN, "children"),
        Input(frame.URL, "search"),
        Input(ids.VERSION, "data"),
        State(ids.GRID, "selectedRows"),
    )
    def tick_rows(search: str, _version: Any, ticked: Any) -> Any:
        return page.tick_rows(library.snapshot(), search, ticked)
