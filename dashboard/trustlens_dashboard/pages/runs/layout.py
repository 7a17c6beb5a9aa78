"""Layout of the runs page."""

from __future__ import annotations

import dash_mantine_components as dmc
from dash import dcc, html

from trustlens_dashboard.components.grid import grid
from trustlens_dashboard.pages.runs import ids
from trustlens_dashboard.pages.runs.table import COLUMNS


def layout() -> html.Div:
    """Return the components of the page, without data."""
    return html.Div(
        [
            html.Div(id=ids.EMPTY),
            html.Div(
                [
                    html.Div(
                        [
                            dmc.Title("Runs", order=1, size="h2"),
                            html.Div(id=ids.CHOSEN, className="runs-chosen", role="status"),
                        ],
                        className="page-head",
                    ),
                    grid(
                        ids.GRID,
                        COLUMNS,
                        row_id="id",
                        options={
                            "rowSelection": {
                                "mode": "multiRow",
                                "headerCheckbox": False,
                                "enableClickSelection": False,
                            },
                            "selectionColumnDef": {
                                "width": 52,
                                "minWidth": 52,
                                "maxWidth": 52,
                                "resizable": False,
                            },
                        },
                    ),
                ],
                id=ids.BOX,
            ),
            dcc.Store(id=ids.VERSION),
        ]
    )
