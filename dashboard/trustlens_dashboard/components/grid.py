"""AG Grid tables in the dashboard's style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import dash_ag_grid as dag

# CSS custom properties of the page, so that tables follow the colour scheme.
_THEME: Final = """themeQuartz.withParams({
    backgroundColor: 'var(--tl-paper)', foregroundColor: 'var(--tl-ink)',
    headerBackgroundColor: 'var(--tl-panel)', headerTextColor: 'var(--tl-muted)',
    borderColor: 'var(--tl-grid)', accentColor: 'var(--tl-accent)',
    chromeBackgroundColor: 'var(--tl-panel)', oddRowBackgroundColor: 'var(--tl-paper)',
    fontFamily: 'inherit', headerFontWeight: 600, fontSize: 13, spacing: 6,
    wrapperBorderRadius: 8, browserColorScheme: 'inherit'})"""

NUMBER: Final[Mapping[str, Any]] = {
    "type": "rightAligned",
    "valueFormatter": {"function": "formatNumber(params.value)"},
    "filter": False,
    "cellClass": "ag-right-aligned-cell numbers",
}
"""Options of a column of numbers. A number has 3 significant digits; a missing one is empty."""


def grid(
    component_id: str,
    columns: Sequence[Mapping[str, Any]],
    *,
    row_id: str,
    height: str | None = None,
    options: Mapping[str, Any] | None = None,
    **properties: Any,
) -> dag.AgGrid:
    """Return a table.

    Parameters
    ----------
    component_id : str
    columns : sequence of mapping
        AG Grid column definitions.
    row_id : str
        The field that identifies a row.
    height : str, optional
        Height in CSS units; if not given, the table is as high as its rows.
    options : mapping, optional
        Further grid options.
    **properties
        Further properties of the Dash component.
    """
    return dag.AgGrid(
        id=component_id,
        columnDefs=[dict(column) for column in columns],
        defaultColDef={"sortable": True, "resizable": True, "minWidth": 84},
        getRowId=f"params.data.{row_id}",
        dashGridOptions={
            "theme": {"function": _THEME},
            "animateRows": False,
            "suppressCellFocus": False,
            "enableCellTextSelection": True,
            "tooltipShowDelay": 300,
            "domLayout": "autoHeight" if height is None else "normal",
            **(options or {}),
        },
        style={"height": height},
        **properties,
    )
