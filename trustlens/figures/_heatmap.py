"""A heatmap of one quantity: layers × steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from trustlens.analysis.names import quantity as quantity_named
from trustlens.analysis.run import Run
from trustlens.figures.axis import Scale, View, axis_edges, on_axis, ticks, view_range
from trustlens.figures.panels import quantity_axis, sentence_case, step_ticks
from trustlens.figures.sampling import choose_scale, read_sample, span_of, why_empty
from trustlens.figures.theme import (
    Theme,
    ThemeName,
    color_at,
    colorscale,
    graph_objects,
    new_figure,
    plain,
    theme_of,
    write_message,
)
from trustlens.figures.words import counted
from trustlens.schema import Quantity

if TYPE_CHECKING:
    import plotly.graph_objects as go

_NEUTRAL: Final = {"trust_ratio": 1.0, "surprise": 1.0}
"""Quantities with a reference value. Their colour scale is diverging: it shows which layers are
above the reference value and which are below it."""


@dataclass(frozen=True, slots=True)
class HeatmapData:
    """One quantity of one run, layers × steps.

    Attributes
    ----------
    quantity : Quantity
    scale : "log" or "linear"
        The scale of the colours.
    layers : tuple of str
        Names in the order of the model, not escaped.
    steps : int64 array of shape (steps,)
    values : float64 array of shape (layers, steps)
        NaN if there is no finite value.
    nonfinite : bool array of shape (layers, steps)
        Whether the recorded value is infinite or NaN.
    low, high : float
        The range of the colours. Values beyond it have the colour of the nearest end.
    center : float or None
        The value at the centre of a diverging colour scale: 1 for ratios with the reference value
        1, 0 for signed quantities. None if the colour scale is sequential, as it is for other
        quantities and if the range does not contain the centre.
    below, above : int
        Number of values below ``low`` and above ``high``.
    width : int
        1 if each value is that of a single step. If values are means of buckets of steps, the
        number of steps of each bucket; ``steps`` then has the first step of each bucket.
    note : str
        Why there is nothing to draw; empty if there are values.
    """

    quantity: Quantity
    scale: Scale
    layers: tuple[str, ...]
    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    nonfinite: NDArray[np.bool_]
    low: float
    high: float
    center: float | None
    below: int
    above: int
    width: int
    note: str


def heatmap_data(
    run: Run,
    quantity: str = "trust_ratio",
    *,
    columns: int = 400,
    scale: Literal["auto", "log", "linear"] = "auto",
    view: View = "robust",
) -> HeatmapData:
    """Return one quantity of each layer at up to ``columns`` steps.

    Parameters
    ----------
    run : Run
    quantity : str
        A recorded or derived quantity.
    columns : int
        Maximum number of steps. The recorded steps nearest to evenly spaced steps are chosen,
        including the first and the last. A long run is instead averaged over buckets of steps:
        at most ``columns`` buckets, and at least half as many.
    scale : "auto", "log" or "linear"
        The scale of the colours. ``"auto"`` is the preferred scale of the quantity.
    view : "robust", "full" or (low, high)
        The range of the colours: all values except outliers (see
        ``trustlens.figures.axis.robust_range``), all values, or the values from low to high.

    Raises
    ------
    UsageError
        If there is no such quantity, scale or view, or ``columns`` is less than 1.
    """
    measured = quantity_named(quantity)
    read = read_sample(run, quantity, columns, span_of([run]))
    axis = choose_scale(scale, measured, [read.values])
    low, high = view_range([read.values], axis, view) or (0.1, 10.0)
    low, high = (float(edge) for edge in axis_edges(low, high, 1, axis))
    center = 0.0 if measured.signed else _NEUTRAL.get(measured.name)
    if not (center is not None and np.isfinite(on_axis(center, axis)) and low < center < high):
        center = None
    return HeatmapData(
        quantity=measured,
        scale=axis,
        layers=tuple(run.layer_names),
        steps=read.steps,
        values=read.values.T,
        nonfinite=read.nonfinite.T,
        low=low,
        high=high,
        center=center,
        below=int((read.values < low).sum()),
        above=int((read.values > high).sum()),
        width=read.width,
        note=why_empty(run, read, measured),
    )


def heatmap(
    run: Run,
    quantity: str = "trust_ratio",
    *,
    theme: ThemeName = "light",
    columns: int = 400,
    scale: Literal["auto", "log", "linear"] = "auto",
    view: View = "robust",
) -> go.Figure:
    """Draw one quantity of each layer over time, with the first layer at the top.

    Parameters
    ----------
    theme : "light" or "dark"
    run, quantity, columns, scale, view
        See :func:`heatmap_data`.

    Returns
    -------
    plotly.graph_objects.Figure
        Show it with ``config=trustlens.figures.PLOTLY_CONFIG``.

    Raises
    ------
    UsageError
        As :func:`heatmap_data`; or if there is no such theme.
    MissingDependencyError
        If Plotly is not installed.
    """
    look = theme_of(theme)
    data = heatmap_data(run, quantity, columns=columns, scale=scale, view=view)
    height = min(max(340, 150 + (24 if len(data.layers) < 20 else 17) * len(data.layers)), 1600)
    subtitle = f"{plain(run.label, 80)} · {_extent(data)}"
    title = f"{sentence_case(data.quantity.title)} {plain(data.quantity.symbol)} of each layer"
    figure = new_figure(look, title, subtitle, height=height)
    if data.note:
        write_message(figure, plain(data.note), look)
        return figure.update_layout(xaxis={"visible": False}, yaxis={"visible": False})
    # Escaped names remain unique and serve as the categories of the axis.
    names = [plain(name) for name in data.layers]
    figure.add_trace(_values(data, names, look, height - 130))
    if data.nonfinite.any():
        figure.add_traces(_nonfinite(data, names, look))
    return figure.update_layout(
        xaxis={
            "title": {"text": "step"},
            "showgrid": False,
            "zeroline": False,
            **step_ticks(float(data.steps[0]), float(data.steps[-1])),
        },
        yaxis=_layers_axis(data.layers, names, height),
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.0, "yanchor": "bottom"},
        plot_bgcolor=look.panel,
    )


def _extent(data: HeatmapData) -> str:
    steps = "one step" if len(data.steps) == 1 else f"{len(data.steps)} steps"
    if data.width > 1:
        steps = f"{len(data.steps)} means of {data.width:,} steps"
    parts = [
        f"{counted(len(data.layers), 'layer')} × {steps}",
        *(
            f"{counted(count, 'value')} {side} the scale"
            for count, side in ((data.below, "below"), (data.above, "above"))
            if count
        ),
    ]
    return ", ".join(parts)


def _values(data: HeatmapData, names: list[str], theme: Theme, height: int) -> go.Heatmap:
    low, high = (float(x) for x in on_axis(np.array([data.low, data.high]), data.scale))
    # Values that a log axis cannot show (≤ 0) get the lowest colour instead of a gap.
    shown = np.clip(on_axis(data.values, data.scale), low, high)
    marks = ticks(data.low, data.high, data.scale)
    texts = [text for _, text in marks]
    return graph_objects().Heatmap(
        x=data.steps,
        y=names,
        z=shown.astype(np.float32),
        zmin=low,
        zmax=high,
        colorscale=colorscale(_ramp(data, theme)),
        customdata=data.values.astype(np.float32),
        hovertemplate=(
            f"%{{y}}<br>step %{{x}}<br>{plain(data.quantity.symbol)} %{{customdata:.4g}}"
            "<extra></extra>"
        ),
        hoverongaps=False,
        colorbar={
            "title": {
                "text": quantity_axis(data.quantity),
                "side": "right",
                "font": {"color": theme.muted, "size": 13},
            },
            "tickvals": [float(on_axis(value, data.scale)) for value, _ in marks],
            "ticktext": texts,
            "tickfont": {"color": theme.muted, "size": 12},
            "outlinewidth": 0,
            "thickness": 12,
            "lenmode": "pixels",
            "len": min(height, 320),
            "y": 1,
            "yanchor": "top",
        },
    )


def _ramp(data: HeatmapData, theme: Theme) -> tuple[str, ...]:
    if data.center is None:
        return theme.sequential
    ends = np.array([data.low, data.center, data.high])
    low, center, high = (float(x) for x in on_axis(ends, data.scale))
    reach = 2 * max(high - center, center - low)
    places = np.linspace(low, high, 33)
    return tuple(color_at(theme.diverging, 0.5 + float(x - center) / reach) for x in places)


def _nonfinite(data: HeatmapData, names: list[str], theme: Theme) -> list[Any]:
    objects = graph_objects()
    cells = objects.Heatmap(
        x=data.steps,
        y=names,  # all names: Plotly fails if a heatmap has only some categories of its axis
        z=np.where(data.nonfinite, 1.0, np.nan).astype(np.float32),
        colorscale=[(0, theme.alert), (1, theme.alert)],
        showscale=False,
        hoverongaps=False,
        hovertemplate="%{y}<br>step %{x}<br>not finite<extra></extra>",
    )
    # A heatmap has no legend entry; add an empty scatter trace to get one.
    legend = objects.Scatter(
        x=[None],
        y=[None],
        mode="markers",
        marker={"symbol": "square", "size": 11, "color": theme.alert},
        name="not finite",
        showlegend=True,
    )
    return [cells, legend]


def _layers_axis(layers: tuple[str, ...], names: list[str], height: int) -> dict[str, Any]:
    room = max(1, (height - 150) // 15)
    stride = -(-len(names) // room)
    return {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": names,
        "autorange": "reversed",
        "tickvals": names[::stride],
        "ticktext": [plain(name, 36) for name in layers[::stride]],
        "tickfont": {"size": 11},
        "showgrid": False,
        "ticks": "",
        "ticklabelstandoff": 6,
    }
