"""Callbacks of the debias and smoothing page."""

from __future__ import annotations

from typing import Any

from dash import Dash, Input, Output

from trustlens_dashboard.components.graph import theme_name
from trustlens_dashboard.frame import ids as frame
from trustlens_dashboard.library import Library
from trustlens_dashboard.pages.smoothing import ids
from trustlens_dashboard.pages.smoothing import view as page


def register(app: Dash, library: Library) -> None:
    """Register the page's callbacks."""

    @app.callback(
        Output(ids.SERIES, "data"),
        Input(frame.URL, "search"),
        Input(frame.CURSOR, "data"),
    )
    def options(search: str, _cursor: Any) -> Any:
        return page.series_options(library.snapshot(), search)

    @app.callback(
        Output(ids.GRAPH, "figure"),
        Output(ids.GRAPH, "style"),
        Input(frame.URL, "search"),
        Input(frame.CURSOR, "data"),
        Input(ids.BETAS, "value"),
        Input(ids.SERIES, "value"),
        Input(ids.DEBIASED, "value"),
        Input(frame.THEME, "data"),
    )
    def smoothed(
        search: str, _cursor: Any, betas: list[str], series: str, debiased: str, theme: str
    ) -> Any:
        return page.smoothed(
            library.snapshot(),
            search,
            betas=betas,
            series=series,
            debiased=debiased,
            theme=theme_name(theme),
        )

    @app.callback(
        Output(ids.DEBIAS_GRAPH, "figure"),
        Output(ids.DEBIAS_GRAPH, "style"),
        Input(frame.URL, "search"),
        Input(frame.CURSOR, "data"),
        Input(ids.BETAS, "value"),
        Input(ids.DEBIAS_RECORDED, "value"),
        Input(frame.THEME, "data"),
    )
    def factors(search: str, _cursor: Any, betas: list[str], recorded: str, theme: str) -> Any:
        return page.factors(
            library.snapshot(), search, betas=betas, recorded=recorded, theme=theme_name(theme)
        )
