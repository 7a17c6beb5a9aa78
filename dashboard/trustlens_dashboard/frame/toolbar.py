"""The toolbar above a page: selectors of run A, run B and the quantity."""

from __future__ import annotations

from typing import Any, Final

import dash_mantine_components as dmc
from dash import html, no_update

from trustlens.figures.theme import assign_colors
from trustlens.schema import QUANTITIES
from trustlens_dashboard.components.graph import aria
from trustlens_dashboard.frame import ids
from trustlens_dashboard.library import Snapshot
from trustlens_dashboard.selection import Selection, resolve

SHORTCUTS: Final = {"trust_ratio": "r", "weight_norm": "r₁", "direction_norm": "r₂"}
"""Text of the button of each quantity that has a button in addition to its entry in the list."""


def toolbar() -> html.Div:
    """Return the selectors, without runs and without a selection; see :func:`synchronize`."""
    return html.Div(
        [
            _run_select(ids.RUN_A, ids.DOT_A, "Run A", clearable=False),
            _run_select(ids.RUN_B, ids.DOT_B, "Run B", clearable=True),
            html.Div(
                [
                    dmc.Select(
                        id=ids.QUANTITY,
                        label="Quantity",
                        data=[
                            {"value": name, "label": f"{q.title} · {q.symbol}"}
                            for name, q in QUANTITIES.items()
                        ],
                        searchable=True,
                        allowDeselect=False,
                        maxDropdownHeight=420,
                        w=270,
                    ),
                    dmc.SegmentedControl(
                        id=ids.SHORTCUT,
                        data=[{"value": name, "label": sign} for name, sign in SHORTCUTS.items()],
                        attributes={
                            "root": aria(label="Trust ratio, weight norm or direction norm")
                        },
                    ),
                ],
                id=ids.QUANTITY_BOX,
                className="quantity-box",
            ),
        ],
        id=ids.TOOLBAR,
        className="toolbar",
    )


def _run_select(select_id: str, dot_id: str, label: str, *, clearable: bool) -> dmc.Select:
    return dmc.Select(
        id=select_id,
        label=label,
        placeholder="none",
        searchable=True,
        clearable=clearable,
        allowDeselect=clearable,
        leftSection=html.Span(id=dot_id, className="dot"),
        nothingFoundMessage="No matching run",
        maxDropdownHeight=420,
        w=300,
    )


def synchronize(
    snapshot: Snapshot, search: str | None, chosen: Selection | None
) -> tuple[Any, ...]:
    """Return the query of the URL and the properties of the toolbar for one selection.

    ``chosen`` is the selection in the toolbar if the user has just changed it there. If ``chosen``
    is None, the selection is that of the URL's query ``search``. The returned query is
    ``no_update`` if it equals ``search``.
    """
    entries = snapshot.entries
    selection = resolve(chosen or Selection.parse(search), entries)
    wanted = selection.search()
    options = [
        {"value": entry.id, "label": entry.run.label} for entry in entries if entry.run is not None
    ]
    first, second = dots(snapshot, selection)
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


def dots(snapshot: Snapshot, selection: Selection) -> tuple[dict[str, str], dict[str, str]]:
    """Return the styles of the two dots that show the colours of run A and run B."""
    chosen = [run_id for run_id in (selection.a, selection.b) if run_id]
    colors = dict(zip(chosen, assign_colors(snapshot.chosen(*chosen)), strict=False))
    first, second = (
        {"background": f"var(--tl-run-{colors[run_id]})"} if run_id in colors else {}
        for run_id in (selection.a, selection.b)
    )
    return first, second
