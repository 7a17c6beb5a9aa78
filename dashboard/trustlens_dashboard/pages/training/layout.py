"""Layout of the training page."""

from __future__ import annotations

import dash_mantine_components as dmc
from dash import html

from trustlens_dashboard.components.graph import choice, graph
from trustlens_dashboard.components.grid import NUMBER, grid
from trustlens_dashboard.pages.training import ids


def layout() -> html.Div:
    """Return the components of the page, without data."""
    return html.Div(
        [
            html.Div(
                [
                    dmc.MultiSelect(
                        id=ids.RUNS,
                        label="More runs",
                        placeholder="in addition to A and B",
                        searchable=True,
                        clearable=True,
                        hidePickedOptions=True,
                        className="wide",
                    ),
                    dmc.MultiSelect(
                        id=ids.NAMES,
                        label="Metrics",
                        placeholder="all",
                        searchable=True,
                        clearable=True,
                        hidePickedOptions=True,
                        className="wide",
                    ),
                    choice(
                        ids.SCALE,
                        "Scale",
                        {"auto": "Auto", "log": "Log", "linear": "Linear"},
                    ),
                ],
                className="page-head bottom",
            ),
            dmc.Paper(graph(ids.GRAPH), className="card"),
            grid(
                ids.GRID,
                [
                    {"field": "run", "headerName": "Run", "flex": 2, "minWidth": 180},
                    {"field": "name", "headerName": "Metric", "flex": 1, "minWidth": 130},
                    {"field": "step", "headerName": "Last step", "flex": 1, **NUMBER},
                    {"field": "last", "headerName": "Last", "flex": 1, **NUMBER},
                    {"field": "lowest", "headerName": "Lowest", "flex": 1, **NUMBER},
                    {"field": "highest", "headerName": "Highest", "flex": 1, **NUMBER},
                    {"field": "nonfinite", "headerName": "Not finite", "flex": 1, **NUMBER},
                ],
                row_id="key",
            ),
        ]
    )
