"""Callbacks of the frame: navigation, selection, live updates, theme."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, ctx

from trustlens_dashboard.frame import ids, live, navigation, toolbar
from trustlens_dashboard.library import Library
from trustlens_dashboard.page import Page
from trustlens_dashboard.selection import Selection


def register(app: Dash, library: Library, pages: Sequence[Page]) -> None:
    """Register the frame's callbacks."""

    @app.callback(
        Output(ids.PAGE, "children"),
        Output(ids.TOOLBAR, "style"),
        Output(ids.QUANTITY_BOX, "style"),
        Input(ids.URL, "pathname"),
    )
    def open_page(path: str) -> Any:
        return navigation.page_at(pages, path)

    @app.callback(Output(ids.NAVIGATION, "children"), Input(ids.URL, "search"))
    def update_links(search: str) -> Any:
        return navigation.links(pages, search)

    @app.callback(
        Output(ids.URL, "search"),
        Output(ids.RUN_A, "value"),
        Output(ids.RUN_A, "data"),
        Output(ids.RUN_B, "value"),
        Output(ids.RUN_B, "data"),
        Output(ids.QUANTITY, "value"),
        Output(ids.SHORTCUT, "value"),
        Output(ids.DOT_A, "style"),
        Output(ids.DOT_B, "style"),
        Input(ids.URL, "search"),
        Input(ids.LISTING, "data"),
        Input(ids.RUN_A, "value"),
        Input(ids.RUN_B, "value"),
        Input(ids.QUANTITY, "value"),
        Input(ids.SHORTCUT, "value"),
    )
    def select(search: str, _listing: Any, a: str, b: str, quantity: str, shortcut: str) -> Any:
        wanted = shortcut if ctx.triggered_id == ids.SHORTCUT else quantity
        picked = ctx.triggered_id in (ids.RUN_A, ids.RUN_B, ids.QUANTITY, ids.SHORTCUT)
        chosen = Selection(a, b or "", wanted) if picked else None
        return toolbar.synchronize(library.snapshot(), search, chosen)

    @app.callback(
        Output(ids.LISTING, "data"),
        Output(ids.CURSOR, "data"),
        Output(ids.LIVE, "children"),
        Input(ids.TICK, "n_intervals"),
        Input(ids.URL, "search"),
        State(ids.LISTING, "data"),
        State(ids.CURSOR, "data"),
    )
    def poll(_tick: int, search: str, listing: Any, cursor: Any) -> Any:
        return live.updates(library.snapshot(), search, listing, cursor)

    app.clientside_callback(
        ClientsideFunction("trustlens", "setWindowTitle"),
        Input(ids.URL, "pathname"),
        Input(ids.TITLES, "data"),
    )
    app.clientside_callback(
        ClientsideFunction("trustlens", "followTheme"),
        Output(ids.THEME, "data"),
        Input(ids.THEME, "id"),
    )
