"""The list of runs follows the folder; ticked rows are the runs to compare."""

from __future__ import annotations

from typing import Any

from dash import Dash, Input, Output, State

from trustlens_dashboard import ids
from trustlens_dashboard.library import Library
from trustlens_dashboard.pages.runs import view as page


def register(app: Dash, library: Library) -> None:
    """Register the page's callbacks."""

    @app.callback(
        Output(ids.RUNS_GRID, "rowData"),
        Output(ids.RUNS_VERSION, "data"),
        Output(ids.RUNS_EMPTY, "children"),
        Output(ids.RUNS_BOX, "style"),
        Input(ids.TICK, "n_intervals"),
        State(ids.RUNS_VERSION, "data"),
    )
    def fill(_tick: int, known: Any) -> Any:
        return page.fill(library, known)

    @app.callback(
        Output(ids.URL, "search", allow_duplicate=True),
        Input(ids.RUNS_GRID, "selectedRows"),
        State(ids.URL, "search"),
        prevent_initial_call=True,
    )
    def tick(ticked: Any, search: str) -> Any:
        return page.tick(search, ticked)

    @app.callback(
        Output(ids.RUNS_GRID, "selectedRows"),
        Output(ids.RUNS_CHOSEN, "children"),
        Input(ids.URL, "search"),
        Input(ids.RUNS_VERSION, "data"),
        State(ids.RUNS_GRID, "selectedRows"),
    )
    def mark(search: str, _version: Any, ticked: Any) -> Any:
        return page.mark(library, search, ticked)
