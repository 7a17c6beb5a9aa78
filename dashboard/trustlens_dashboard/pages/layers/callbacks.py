"""Callbacks of the layers page."""

from __future__ import annotations

from typing import Any

from dash import Dash, Input, Output, State, ctx

from trustlens_dashboard.components.graph import theme_name
from trustlens_dashboard.frame import ids as frame
from trustlens_dashboard.library import Library
from trustlens_dashboard.pages.layers import ids
from trustlens_dashboard.pages.layers import view as page


def register(app: Dash, library: Library) -> None:
    """Register the page's callbacks."""

    @app.callback(Output(ids.RUN, "data"), Input(frame.URL, "search"))
    def run_options(search: str) -> Any:
        return page.run_options(library.snapshot(), search)

    @app.callback(
        Output(ids.VERDICT, "children"),
        Output(ids.FINDINGS, "rowData"),
        Output(ids.FINDINGS_BOX, "style"),
        Output(ids.TABLE_TITLE, "children"),
        Output(ids.GRID, "rowData"),
        Input(frame.URL, "search"),
        Input(frame.CURSOR, "data"),
        Input(ids.RUN, "value"),
    )
    def overview(search: str, _cursor: Any, a_or_b: str) -> Any:
        return page.overview(library.snapshot(), search, a_or_b)

    @app.callback(
        Output(ids.HEATMAP, "figure"),
        Output(ids.HEATMAP, "style"),
        Input(frame.URL, "search"),
        Input(frame.CURSOR, "data"),
        Input(ids.RUN, "value"),
        Input(frame.THEME, "data"),
    )
    def heatmap(search: str, _cursor: Any, a_or_b: str, theme: str) -> Any:
        return page.heatmap_figure(library.snapshot(), search, a_or_b, theme_name(theme))

    @app.callback(
        Output(ids.LAYER, "data"),
        Output(ids.LAYER, "value"),
        Input(frame.URL, "search"),
        Input(ids.HEATMAP, "clickData"),
        Input(ids.GRID, "cellClicked"),
        Input(ids.FINDINGS, "cellClicked"),
        State(ids.LAYER, "value"),
    )
    def choose_layer(
        search: str, _heatmap: Any, _table: Any, _findings: Any, layer: str | None
    ) -> Any:
        event = ctx.triggered[0]["value"] if ctx.triggered_id not in (None, frame.URL) else None
        return page.choose_layer(library.snapshot(), search, event, layer)

    @app.callback(
        Output(ids.LAYER_GRAPH, "figure"),
        Output(ids.LAYER_GRAPH, "style"),
        Input(ids.LAYER, "value"),
        Input(frame.URL, "search"),
        Input(frame.CURSOR, "data"),
        Input(frame.THEME, "data"),
    )
    def over_time(layer: str | None, search: str, _cursor: Any, theme: str) -> Any:
        return page.over_time(library.snapshot(), search, layer, theme_name(theme))
