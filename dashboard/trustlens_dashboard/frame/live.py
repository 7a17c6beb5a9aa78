"""Live updates: at each tick, report changes of the list of runs and of the selected runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dash import html, no_update

from trustlens.errors import TrustlensError
from trustlens_dashboard.library import Entry, Snapshot
from trustlens_dashboard.selection import Selection


def updates(
    snapshot: Snapshot, search: str | None, listing: Any, cursor: Any
) -> tuple[Any, Any, Any]:
    """Return the list of runs, and the versions and the badges of the selected runs.

    A selected run has a badge while it is being recorded.
    ``listing`` and ``cursor`` are the list and the versions that the browser already has. A value
    that equals the browser's is replaced by ``no_update``. The badges are replaced by
    ``no_update`` if neither the list nor the versions changed.
    """
    current = snapshot.listing()
    selection = Selection.parse(search)
    by_id = {entry.id: entry for entry in snapshot.entries}
    selected = [by_id[i] for i in dict.fromkeys((selection.a, selection.b)) if i in by_id]
    state = [[entry.id, *snapshot.version(entry)] for entry in selected]
    if state == cursor and current == listing:
        return no_update, no_update, no_update
    return (
        current if current != listing else no_update,
        state if state != cursor else no_update,
        badges(selected),
    )


def badges(selected: Sequence[Entry]) -> list[Any]:
    """Return a badge for each selected run that is being recorded."""
    found: list[Any] = []
    for entry in selected:
        try:
            if entry.run is None or entry.run.status != "recording":
                continue
            text = f"{entry.name}: recording, step {entry.run.last_step}"
        except TrustlensError:
            continue  # the run is damaged; the page reports the error
        found.append(html.Span([html.Span(className="pulse"), text], className="badge recording"))
    return found
