"""Layout of the ridgelines page."""

from __future__ import annotations

import dash_mantine_components as dmc
from dash import dcc, html

from trustlens_dashboard.components.graph import choice
from trustlens_dashboard.components.grid import grid
from trustlens_dashboard.pages.ridgelines import ids


def layout() -> html.Div:
    """Return the components of the page, without data."""
    return html.Div(
        [
            html.Div(
                [
                    html.Div(id=ids.FORMULA, className="formula"),
                    choice(
                        ids.SCALE,
                        "Scale",
                        {"auto": "Auto", "log": "Log", "linear": "Linear"},
                    ),
                    choice(
                        ids.VIEW,
                        "Range",
                        {"robust": "Most layers", "full": "Every layer"},
                    ),
                ],
                className="page-head",
            ),
            dmc.Paper(
                [
                    html.Div(id=ids.MESSAGE),
                    html.Div(id=ids.RIDGELINES, className="ridgelines"),
                    html.Div(
                        [
                            html.Label("Step", id="step-label", className="slider-label"),
                            dmc.Slider(
                                id=ids.STEP_SLIDER,
                                value=0,
                                min=0,
                                max=1,
                                marks=[],
                                restrictToMarks=True,
                                updatemode="drag",
                                thumbLabel="Step",
                                labelAlwaysOn=False,
                                flex=1,
                                styles={"mark": {"display": "none"}},
                            ),
                            dmc.Text(
                                "drag to turn · wheel to zoom · double-click to reset",
                                className="hint",
                            ),
                        ],
                        className="slider-row",
                    ),
                ],
                className="card",
            ),
            html.Div(id=ids.STEP_SUMMARY, className="step-summary", role="status"),
            grid(
                ids.STEP_GRID,
                [{"field": "layer", "headerName": "Layer"}],
                row_id="layer",
                height="340px",
            ),
            dcc.Store(id=ids.DATA),
            dcc.Store(id=ids.STEP),
        ]
    )
