"""The pages: what stands where. Each module has ``layout()``; the numbers come by callbacks."""

from __future__ import annotations

from typing import Any, Final

import dash_mantine_components as dmc
from dash import html

from trustlens_dashboard.pages.layers import layout as layers
from trustlens_dashboard.pages.ridgelines import layout as ridgelines
from trustlens_dashboard.pages.runs import layout as runs
from trustlens_dashboard.pages.smoothing import layout as smoothing
from trustlens_dashboard.pages.training import layout as training

LAYOUTS: Final = {
    "/": runs.layout,
    "/ridgelines": ridgelines.layout,
    "/training": training.layout,
    "/layers": layers.layout,
    "/smoothing": smoothing.layout,
}


def page_at(path: str | None) -> Any:
    """Return the page at a path of the address; a friendly sentence if there is none."""
    layout = LAYOUTS.get(path or "/")
    if layout is not None:
        return layout()
    return html.Div(
        [
            dmc.Title("There is no such page", order=1, size="h2"),
            dmc.Text(["Go to the ", dmc.Anchor("list of runs", href="/"), "."]),
        ]
    )
