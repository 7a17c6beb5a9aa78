"""The training page follows the selection and the runs on disk."""

from __future__ import annotations

from typing import Any

from dash import Dash, Input, Output

from trustlens_dashboard import ids
from trustlens_dashboard.components.graph import theme_name
from trustlens_dashboard.library import Library
from trustlens_dashboard.pages.training import view as page


def register(app: Dash, library: Library) -> None:
    """Register the page's callbacks."""

    @app.callback(
        Output(ids.TRAINING_RUNS, "data"),
        Input(ids.URL, "search"),
        Input(ids.LISTING, "data"),
    )
    def options(search: str, _listing: Any) -> Any:
        return page.options(library, search)

    @app.callback(
        Output(ids.TRAINING_GRAPH, "figure"),
        Output(ids.TRAINING_GRAPH, "style"),
        Output(ids.TRAINING_NAMES, "data"),
        Output(ids.TRAINING_GRID, "rowData"),
        Input(ids.URL, "search"),
        Input(ids.CURSOR, "data"),
        Input(ids.TRAINING_RUNS, "value"),
        Input(ids.TRAINING_NAMES, "value"),
        Input(ids.TRAINING_SCALE, "value"),
        Input(ids.THEME, "data"),
    )
    def picture(search: str, _cursor: Any, more: Any, names: Any, scale: str, theme: str) -> Any:
        return page.picture(
            library, search, more=more, names=names, scale=scale, theme=theme_name(theme)
        )
