"""The layers page follows the selection, the runs on disk, and clicks on a layer."""

from __future__ import annotations

from typing import Any

from dash import Dash, Input, Output, State, ctx

from trustlens_dashboard import ids
from trustlens_dashboard.components.graph import theme_name
from trustlens_dashboard.library import Library
from trustlens_dashboard.pages.layers import view as page


def register(app: Dash, library: Library) -> None:
    """Register the page's callbacks."""

    @app.callback(Output(ids.LAYERS_RUN, "data"), Input(ids.URL, "search"))
    def choices(search: str) -> Any:
        return page.choices(library, search)

    @app.callback(
        Output(ids.LAYERS_VERDICT, "children"),
        Output(ids.LAYERS_FINDINGS, "rowData"),
        Output(ids.LAYERS_FINDINGS_BOX, "style"),
        Output(ids.LAYERS_TABLE_TITLE, "children"),
        Output(ids.LAYERS_GRID, "rowData"),
        Input(ids.URL, "search"),
        Input(ids.CURSOR, "data"),
        Input(ids.LAYERS_RUN, "value"),
    )
    def overview(search: str, _cursor: Any, which: str) -> Any:
        return page.overview(library, search, which)

    @app.callback(
        Output(ids.LAYERS_HEATMAP, "figure"),
        Output(ids.LAYERS_HEATMAP, "style"),
        Input(ids.URL, "search"),
        Input(ids.CURSOR, "data"),
        Input(ids.LAYERS_RUN, "value"),
        Input(ids.THEME, "data"),
    )
    def picture(search: str, _cursor: Any, which: str, theme: str) -> Any:
        return page.picture(library, search, which, theme_name(theme))

    @app.callback(
        Output(ids.LAYER, "data"),
        Output(ids.LAYER, "value"),
        Input(ids.URL, "search"),
        Input(ids.LAYERS_HEATMAP, "clickData"),
        Input(ids.LAYERS_GRID, "cellClicked"),
        Input(ids.LAYERS_FINDINGS, "cellClicked"),
        State(ids.LAYER, "value"),
    )
    def pick(search: str, _heatmap: Any, _table: Any, _findings: Any, layer: str | None) -> Any:
        event = ctx.triggered[0]["value"] if ctx.triggered_id not in (None, ids.URL) else None
        return page.layer_options(library, search, page.clicked(library, search, event) or layer)

    @app.callback(
        Output(ids.LAYER_GRAPH, "figure"),
        Output(ids.LAYER_GRAPH, "style"),
        Input(ids.LAYER, "value"),
        Input(ids.URL, "search"),
        Input(ids.CURSOR, "data"),
        Input(ids.THEME, "data"),
    )
    def over_time(layer: str | None, search: str, _cursor: Any, theme: str) -> Any:
        return page.over_time(library, search, layer, theme_name(theme))
