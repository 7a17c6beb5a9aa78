"""Navigation: links to the pages, and the page that belongs to a URL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dash_mantine_components as dmc
from dash import html

from trustlens_dashboard.page import Page


def links(pages: Sequence[Page], search: str | None) -> list[dmc.NavLink]:
    """Return a link to each page; the URL's query ``search`` passes the selection to the page."""
    return [
        dmc.NavLink(
            label=page.title, href=page.path + (search or ""), active="exact", className="nav-link"
        )
        for page in pages
    ]


def page_at(pages: Sequence[Page], path: str | None) -> tuple[Any, dict[str, str], dict[str, str]]:
    """Return the components of the page at ``path``, and the styles of toolbar and quantity box.

    The styles hide the toolbar or the quantity box if the page does not use it. They hide both if
    there is no page at ``path``.
    """
    page = next((page for page in pages if page.path == (path or "/")), None)
    hidden = {"display": "none"}
    if page is None:
        return _not_found(), hidden, hidden
    return page.layout(), {} if page.uses_runs else hidden, {} if page.uses_quantity else hidden


def titles(pages: Sequence[Page]) -> dict[str, str]:
    """Return the pages' titles as a dict from path to title."""
    return {page.path: page.title for page in pages}


def _not_found() -> html.Div:
    return html.Div(
        [
            dmc.Title("Page not found", order=1, size="h2"),
            dmc.Text(["Go to the ", dmc.Anchor("list of runs", href="/"), "."]),
        ]
    )
