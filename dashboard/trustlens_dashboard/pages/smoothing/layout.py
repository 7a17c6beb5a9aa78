"""Layout of the debias and smoothing page."""

from __future__ import annotations

import dash_mantine_components as dmc
from dash import html

from trustlens_dashboard.components.graph import choice, graph
from trustlens_dashboard.pages.smoothing import ids
from trustlens_dashboard.pages.smoothing.view import BETAS, EXAMPLE


def layout() -> html.Div:
    """Return the components of the page, without data."""
    return html.Div(
        [
            html.Div(
                [
                    dmc.MultiSelect(
                        id=ids.BETAS,
                        label="β",
                        data=list(BETAS),
                        value=["0.5", "0.9", "0.99"],
                        hidePickedOptions=True,
                        clearable=False,
                        w=330,
                    ),
                    dmc.Select(
                        id=ids.SERIES,
                        label="Series",
                        data=[{"value": EXAMPLE, "label": "a noisy example"}],
                        value=EXAMPLE,
                        allowDeselect=False,
                        w=330,
                    ),
                    choice(
                        ids.DEBIASED,
                        "Debias factor",
                        {"both": "Side by side", "without": "Without", "with": "With"},
                    ),
                ],
                className="page-head bottom",
            ),
            dmc.Paper(graph(ids.GRAPH), className="card"),
            html.Div(
                choice(
                    ids.DEBIAS_RECORDED,
                    "Recorded factors",
                    {"none": "None", "a": "Run A", "b": "Run B"},
                ),
                className="page-head",
            ),
            dmc.Paper(graph(ids.DEBIAS_GRAPH), className="card"),
        ]
    )
