"""Layout of the layers page."""

from __future__ import annotations

import dash_mantine_components as dmc
from dash import html

from trustlens_dashboard.components.graph import aria, graph
from trustlens_dashboard.components.grid import NUMBER, grid
from trustlens_dashboard.pages.layers import ids
from trustlens_dashboard.pages.layers.view import TABLE_COLUMNS


def layout() -> html.Div:
    """Return the components of the page, without data."""
    return html.Div(
        [
            html.Div(
                [
                    dmc.SegmentedControl(
                        id=ids.RUN,
                        data=[{"value": "a", "label": "Run A"}, {"value": "b", "label": "Run B"}],
                        value="a",
                        attributes={"root": aria(label="Run to show")},
                    ),
                    html.Div(id=ids.VERDICT, className="verdict", role="status"),
                ],
                className="page-head",
            ),
            html.Div(
                [
                    dmc.Title("Suspicious layers", order=2, size="h4", mb="xs"),
                    grid(
                        ids.FINDINGS,
                        [
                            {"field": "layer", "headerName": "Layer", "flex": 2, "minWidth": 180},
                            {"field": "kind", "headerName": "Kind", "width": 120},
                            {"field": "step", "headerName": "From step", "width": 110, **NUMBER},
                            {"field": "score", "headerName": "Score", "width": 100, **NUMBER},
                            {
                                "field": "evidence",
                                "headerName": "Evidence",
                                "flex": 4,
                                "minWidth": 280,
                                "tooltipField": "evidence",
                            },
                        ],
                        row_id="layer",
                        height="210px",
                    ),
                ],
                id=ids.FINDINGS_BOX,
                className="section",
            ),
            dmc.Paper(graph(ids.HEATMAP, class_name="graph scrolling"), className="card"),
            dmc.Paper(
                [
                    dmc.Select(
                        id=ids.LAYER,
                        label="One layer over time",
                        searchable=True,
                        allowDeselect=False,
                        maxDropdownHeight=420,
                        w=420,
                    ),
                    graph(ids.LAYER_GRAPH),
                ],
                className="card",
            ),
            dmc.Title(id=ids.TABLE_TITLE, order=2, size="h4", mb="xs"),
            grid(ids.GRID, TABLE_COLUMNS, row_id="layer", height="520px"),
        ]
    )
