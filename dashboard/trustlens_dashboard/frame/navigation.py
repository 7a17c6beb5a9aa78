"""What the frame's callbacks return: selection, navigation, what is being recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import dash_mantine_components as dmc
from dash import html, no_update

from trustlens.errors import TrustlensError
from trustlens.figures.theme import assign_colors
from trustlens_dashboard.frame.layout import SHORTCUTS
from trustlens_dashboard.library import Entry, Library
from trustlens_dashboard.selection import Selection, settle

PAGES: Final = {
    "/": "Runs",
    "/ridgelines": "Ridgelines",
    "/training": "Training",
    "/layers": "Layers",
    "/smoothing": "Debias & smoothing",
}
"""The pages by path, in the order of the navigation."""

USES_QUANTITY: Final = ("/ridgelines", "/layers")


def links(search: str | None) -> list[dmc.NavLink]:
    """Return the navigation; the selection goes along from page to page."""
    return [
        dmc.NavLink(label=name, href=path + (search or ""), active="exact", className="nav-link")
        for path, name in PAGES.items()
    ]


def synchronise(library: Library, search: str | None, chosen: Selection | None) -> tuple[Any, ...]:
    """Return the address's query and what the toolbar shows, in step with each other.

    ``chosen`` is what the user picked in the toolbar; None if the address has the say.
    The query is ``no_update`` where it stands as it should.
    """
    entries = library.entries()
    selection = settle(chosen or Selection.parse(search), entries)
    wanted = selection.search()
    options = [
        {"value": entry.id, "label": entry.run.label} for entry in entries if entry.run is not None
    ]
    first, second = dots(library, selection)
    return (
        wanted if wanted != search else no_update,
        selection.a,
        options,
        selection.b or None,
        options,
        selection.quantity,
        selection.quantity if selection.quantity in SHORTCUTS else "",
        first,
        second,
    )


def dots(library: Library, selection: Selection) -> tuple[dict[str, str], dict[str, str]]:
    """Return the style of the two coloured marks beside the runs' names."""
    ids = [run_id for run_id in (selection.a, selection.b) if run_id]
    colors = dict(zip(ids, assign_colors(library.chosen(*ids)), strict=False))
    first, second = (
        {"background": f"var(--tl-run-{colors[run_id]})"} if run_id in colors else {}
        for run_id in (selection.a, selection.b)
    )
    return first, second


def visibility(path: str | None) -> tuple[dict[str, str], dict[str, str]]:
    """Return the style of the toolbar and of its quantity: there where the page uses them."""
    return (
        {} if path in PAGES and path != "/" else {"display": "none"},
        {} if path in USES_QUANTITY else {"display": "none"},
    )


def news(library: Library, search: str | None, listing: Any, cursor: Any) -> tuple[Any, Any, Any]:
    """Return the list of runs, the state of the selected ones, and the words on what is live.

    Each is ``no_update`` where nothing has changed.
    """
    entries = library.entries()
    now = library.listing()
    selection = Selection.parse(search)
    by_id = {entry.id: entry for entry in entries}
    selected = [by_id[i] for i in dict.fromkeys((selection.a, selection.b)) if i in by_id]
    state = [_state(entry) for entry in selected]
    if state == cursor and now == listing:
        return no_update, no_update, no_update
    return (
        now if now != listing else no_update,
        state if state != cursor else no_update,
        live(selected),
    )


def _state(entry: Entry) -> list[str]:
    try:
        return [entry.id, *((entry.run.status, entry.run.version) if entry.run else ())]
    except TrustlensError as error:  # it is going, or being replaced
        return [entry.id, str(error)]


def live(selected: Sequence[Entry]) -> list[Any]:
    """Return one badge for each selected run that is being recorded."""
    badges: list[Any] = []
    for entry in selected:
        try:
            if entry.run is None or entry.run.status != "recording":
                continue
            words = f"{entry.name}: recording, step {entry.run.last_step}"
        except TrustlensError:
            continue  # damaged: the page itself says so
        badges.append(html.Span([html.Span(className="pulse"), words], className="badge recording"))
    return badges
