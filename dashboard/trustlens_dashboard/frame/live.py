"""Live updates: at each tick, the list of runs and whether the selected ones have grown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dash import html, no_update

from trustlens.errors import TrustlensError
from trustlens_dashboard.library import Entry, Snapshot
from trustlens_dashboard.selection import Selection


def news(snapshot: Snapshot, search: str | None, listing: Any, cursor: Any) -> tuple[Any, Any, Any]:
    """Return the list of runs, the state of the selected ones, and the badges of live runs.

    Each is ``no_update`` if nothing has changed.
    """
    now = snapshot.listing()
    selection = Selection.parse(search)
    by_id = {entry.id: entry for entry in snapshot.entries}
    selected = [by_id[i] for i in dict.fromkeys((selection.a, selection.b)) if i in by_id]
    state = [[entry.id, *snapshot.version(entry)] for entry in selected]
    if state == cursor and now == listing:
        return no_update, no_update, no_update
    return (
        now if now != listing else no_update,
        state if state != cursor else no_update,
        live(selected),
    )


def live(selected: Sequence[Entry]) -> list[Any]:
    """Return a badge for each selected run that is being recorded."""
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
