"""The pages: links to them, the one that an address shows, and what it needs of the toolbar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dash_mantine_components as dmc
from dash import html

from trustlens_dashboard.page import Page


def links(pages: Sequence[Page], search: str | None) -> list[dmc.NavLink]:
    """Return a link to each page, with the address's query: the selection stays the same."""
    return [
        dmc.NavLink(
            label=page.title, href=page.path + (search or ""), active="exact", className="nav-link"
        )
        for page in pages
    ]


def show(pages: Sequence[Page], path: str | None) -> tuple[Any, dict[str, str], dict[str, str]]:
    """Return the page at a path of the address, and the styles of the toolbar and its quantity.

    The styles hide what the page does not use.
    """
    page = next((page for page in pages if page.path == (path or "/")), None)
    hidden = {"display": "none"}
    if page is None:
        return _no_page(), hidden, hidden
    return page.layout(), {} if page.uses_runs else hidden, {} if page.uses_quantity else hidden


def titles(pages: Sequence[Page]) -> dict[str, str]:
    """Return the title of each page by its path."""
    return {page.path: page.title for page in pages}


def _no_page() -> html.Div:
    return html.Div(
        [
            dmc.Title("There is no such page", order=1, size="h2"),
            dmc.Text(["Go to the ", dmc.Anchor("list of runs", href="/"), "."]),
        ]
    )
