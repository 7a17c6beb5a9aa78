"""Contents of the runs page, computed from a snapshot. The callbacks call these functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import dash_mantine_components as dmc
from dash import html, no_update

from trustlens_dashboard.components import empty
from trustlens_dashboard.library import Snapshot
from trustlens_dashboard.pages.runs import table as run_table
from trustlens_dashboard.selection import Selection


def update_rows(snapshot: Snapshot, known: Any) -> tuple[Any, ...]:
    """Return rows, their version, the panel for an empty list, and the style of the grid's box.

    All are ``no_update`` if the rows still have the version ``known``.
    """
    version = run_table.version(snapshot)
    if version == known:
        return (no_update,) * 4
    rows = run_table.rows(snapshot)
    if not rows:
        return rows, version, empty.no_runs(snapshot.root), {"display": "none"}
    return rows, version, None, {}


def select_runs(search: str | None, ticked: Any) -> Any:
    """Return the URL's query that selects the ticked runs.

    Of more than two ticked runs, only the last two are selected. The result is ``no_update`` if no
    run is ticked, or if the selection has not changed.
    """
    if not ticked:
        return no_update  # the grid also reports an empty selection while it loads its rows
    selection = Selection.parse(search)
    wanted = _choose(selection, _ids(ticked)).search()
    return no_update if wanted == selection.search() else wanted


def tick_rows(snapshot: Snapshot, search: str | None, ticked: Any) -> tuple[Any, list[Any]]:
    """Return the rows to tick for the URL's selection, and a line of text.

    The text names the selected runs and links to the pages that compare them.
    """
    selection = Selection.parse(search)
    chosen = [run_id for run_id in (selection.a, selection.b) if run_id]
    names = [run.name for run in snapshot.chosen(*chosen)]
    # Setting an unchanged selection would trigger the grid's callback again.
    rows = no_update if set(_ids(ticked)) == set(chosen) else {"ids": chosen}
    return rows, _links(names, selection.search())


def _ids(ticked: Any) -> list[str]:
    """Return the ids in ``selectedRows``.

    The value is a list of rows if the user ticked them, and a dict if a callback ticked them.
    """
    if isinstance(ticked, Mapping):
        return list(ticked["ids"])
    return [str(row["id"]) for row in ticked or ()]


def _choose(selection: Selection, ticked: Sequence[str]) -> Selection:
    kept = [run_id for run_id in (selection.a, selection.b) if run_id in ticked]
    chosen = [*kept, *(run_id for run_id in ticked if run_id not in kept)][-2:]
    first, second = (*chosen, "", "")[:2]
    return replace(selection, a=first or None, b=second)


def _links(names: Sequence[str], search: str) -> list[Any]:
    if not names:
        return [html.Span("Tick two runs to compare them.")]
    second = [" and ", html.Strong(names[1])] if names[1:] else []
    return [
        html.Span([html.Strong(names[0]), *second]),
        dmc.Anchor("Ridgelines →", href=f"/ridgelines{search}", className="go"),
        dmc.Anchor("Training →", href=f"/training{search}", className="go"),
    ]
