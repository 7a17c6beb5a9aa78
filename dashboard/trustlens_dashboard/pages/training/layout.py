"""Training: what was logged over time, of several runs."""

from __future__ import annotations

import dash_mantine_components as dmc
from dash import html

from trustlens_dashboard import ids
from trustlens_dashboard.components.graph import choice, graph
from trustlens_dashboard.components.grid import NUMBER, grid


def layout() -> html.Div:
    """Return the page."""
    return html.Div(
        [
            html.Div(
                [
                    dmc.MultiSelect(
                        id=ids.TRAINING_RUNS,
                        label="More runs",
                        placeholder="beside A and B",
                        searchable=True,
                        clearable=True,
                        hidePickedOptions=True,
                        className="wide",
                    ),
                    dmc.MultiSelect(
                        id=ids.TRAINING_NAMES,
                        label="What was logged",
                        placeholder="everything",
                        searchable=True,
                        clearable=True,
                        hidePickedOptions=True,
                        className="wide",
                    ),
                    choice(
                        ids.TRAINING_SCALE,
                        "Scale",
                        {"auto": "Auto", "log": "Log", "linear": "Linear"},
                    ),
                ],
                className="page-head bottom",
            ),
            dmc.Paper(graph(ids.TRAINING_GRAPH), className="card"),
            grid(
                ids.TRAINING_GRID,
                [
                    {"field": "run", "headerName": "Run", "flex": 2, "minWidth": 180},
                    {"field": "name", "headerName": "Logged", "flex": 1, "minWidth": 130},
                    {"field": "step", "headerName": "Last step", "flex": 1, **NUMBER},
                    {"field": "last", "headerName": "Last", "flex": 1, **NUMBER},
                    {"field": "lowest", "headerName": "Lowest", "flex": 1, **NUMBER},
                    {"field": "highest", "headerName": "Highest", "flex": 1, **NUMBER},
                    {"field": "lost", "headerName": "Not finite", "flex": 1, **NUMBER},
                ],
                row_id="key",
            ),
        ]
    )
