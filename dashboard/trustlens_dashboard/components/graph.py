"""Graphs and switches that the pages share."""

from __future__ import annotations

from typing import Any, cast

import dash_mantine_components as dmc
import plotly.graph_objects as go
from dash import dcc, html

from trustlens.figures.theme import (
    PLOTLY_CONFIG,
    ThemeName,
    new_figure,
    plain,
    theme_of,
    write_message,
)


def graph(component_id: str, *, class_name: str = "graph") -> html.Div:
    """Return an empty graph that resizes with its container.

    The graph has neither Plotly's logo nor Plotly's button for uploads.
    """
    empty = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
             "xaxis": {"visible": False}, "yaxis": {"visible": False}}  # fmt: skip
    return html.Div(
        dcc.Graph(
            id=component_id,
            config=cast("Any", PLOTLY_CONFIG),
            responsive=True,
            style={"height": "460px"},
            figure={"data": [], "layout": empty},
        ),
        className=class_name,
    )


def aria(**attributes: str) -> dict[str, Any]:
    """Return ARIA attributes: ``label="Step"`` becomes ``{"aria-label": "Step"}``."""
    return {f"aria-{name}": value for name, value in attributes.items()}


def choice(component_id: str, label: str, options: dict[str, str]) -> html.Div:
    """Return a labelled switch; ``options`` maps values to texts, the first is selected."""
    return html.Div(
        [
            html.Span(label, className="choice-label"),
            dmc.SegmentedControl(
                id=component_id,
                data=[{"value": value, "label": text} for value, text in options.items()],
                value=next(iter(options)),
                size="xs",
                attributes={"root": aria(label=label)},
            ),
        ],
        className="choice",
    )


def theme_name(text: str | None) -> ThemeName:
    """Return the theme of the browser's colour scheme; light if the scheme is not known yet."""
    return "dark" if text == "dark" else "light"


def message_figure(text: str, theme: ThemeName) -> go.Figure:
    """Return an empty figure with a message."""
    look = theme_of(theme)
    figure = new_figure(look, "", "", height=320)
    figure.update_layout(xaxis_visible=False, yaxis_visible=False)
    write_message(figure, plain(text), look)
    return figure


def with_style(figure: go.Figure, *view: Any) -> tuple[go.Figure, dict[str, str]]:
    """Return the figure and a CSS style with the height of the figure.

    When the figure replaces an earlier one with the same values of ``view``, the browser preserves
    the user's zoom.
    """
    figure.update_layout(uirevision=repr(view))
    return figure, {"height": f"{figure.layout.height}px"}  # pyright: ignore[reportAttributeAccessIssue]
