"""Graphs, and the switches beside them, as the pages use them."""

from __future__ import annotations

from typing import Any, cast

import dash_mantine_components as dmc
import plotly.graph_objects as go
from dash import dcc, html

from trustlens.figures.theme import PLOTLY_CONFIG, ThemeName, new_figure, plain, say, theme_of


def graph(component_id: str, *, class_name: str = "graph") -> html.Div:
    """Return a graph with the house's configuration: no logo, no cloud, fitting its place."""
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
    """Return attributes for screen readers: ``label="Step"`` becomes ``aria-label``."""
    return {f"aria-{name}": value for name, value in attributes.items()}


def choice(component_id: str, label: str, options: dict[str, str]) -> html.Div:
    """Return a small switch between a few values, the first one chosen, with its name before it."""
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
    """Return the name of the theme that the browser is in; light while it is not known."""
    return "dark" if text == "dark" else "light"


def sentence(text: str, theme: ThemeName) -> go.Figure:
    """Return a figure that says in words why there is nothing to draw."""
    look = theme_of(theme)
    figure = new_figure(look, "", "", height=320)
    figure.update_layout(xaxis_visible=False, yaxis_visible=False)
    say(figure, plain(text), look)
    return figure


def placed(figure: go.Figure, *view: Any) -> tuple[go.Figure, dict[str, str]]:
    """Return the figure and the style of its place; zoom is kept while ``view`` is the same."""
    figure.update_layout(uirevision=repr(view))
    return figure, {"height": f"{figure.layout.height}px"}  # pyright: ignore[reportAttributeAccessIssue]
