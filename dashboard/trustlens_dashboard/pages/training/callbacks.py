"""Callbacks of the training page."""

from __future__ import annotations

from typing import Any

from dash import Dash, Input, Output

from trustlens_dashboard.components.graph import theme_name
from trustlens_dashboard.frame import ids as frame
from trustlens_dashboard.library import Library
from trustlens_dashboard.pages.training import ids
from trustlens_dashboard.pages.training import view as page


def register(app: Dash, library: Library) -> None:
    """Register the page's callbacks."""

    @app.callback(
        Output(ids.RUNS, "data"),
        Input(frame.URL, "search"),
        Input(frame.LISTING, "data"),
    )
    def options(search: str, _listing: Any) -> Any:
        return page.options(library.snapshot(), search)

    @app.callback(
        Output(ids.GRAPH, "figure"),
        Output(ids.GRAPH, "style"),
        Output(ids.NAMES, "data"),
        Output(ids.GRID, "rowData"),
        Input(frame.URL, "search"),
        Input(frame.CURSOR, "data"),
        Input(ids.RUNS, "value"),
        Input(ids.NAMES, "value"),
        Input(ids.SCALE, "value"),
        Input(frame.THEME, "data"),
    )
    def picture(search: str, _cursor: Any, more: Any, names: Any, scale: str, theme: str) -> Any:
        return page.picture(
            library.snapshot(), search, more=more, names=names, scale=scale, theme=theme_name(theme)
        )
