"""Heatmap: one quantity of each layer over time."""

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
    say,
    theme_of,
)
from trustlens.figures.words import counted
from trustlens.schema import Quantity

if TYPE_CHECKING:
    import plotly.graph_objects as go

_NEUTRAL: Final = {"trust_ratio": 1.0, "surprise": 1.0}
"""Values that a quantity is read against: colour shows which side a layer is on."""


@dataclass(frozen=True, slots=True)
class HeatmapData:
    """One quantity of one run, layers × steps.

    Attributes
    ----------
    quantity : Quantity
    scale : "log" or "linear"
        Of the colours.
    layers : tuple of str
        Names, in the order of the model; not escaped.
    steps : int64 array of shape (steps,)
    values : float64 array of shape (layers, steps)
        NaN where there is no finite value.
    nonfinite : bool array of shape (layers, steps)
        Where the value is infinite or NaN.
    low, high : float
        What the colours cover; what lies beyond has the colour of the end.
    center : float or None
        The neutral value of a diverging scale, equally strong at equal distance to either side: 1
        for ratios read against 1, 0 for signed quantities. ``None`` for a sequential scale, also
        where all values lie on one side.
    below, above : int
        How many values lie beyond ``low`` and ``high``.
    width : int
        1, or how many steps each value is the mean of; ``steps`` names the first.
    note : str
        Why there is nothing to draw; empty if there is something.
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
        Steps to show: those recorded nearest to an even division of the time, first and last
        included; of a long run the means of as many stretches of steps, or of half as many.
    scale : "auto", "log" or "linear"
        Of the colours; ``"auto"`` is the scale that the quantity reads best on.
    view : "robust", "full" or (low, high)
        What the colours cover, as for ``ridgeline_data``.

    Raises
    ------
    UsageError
        No such quantity, scale or view, or fewer than one column.
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
    """Draw one quantity of each layer over time, first layer at the top.

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
        As :func:`heatmap_data`; or there is no such theme.
    MissingDependencyError
        Plotly is not installed.
    """
    look = theme_of(theme)
    data = heatmap_data(run, quantity, columns=columns, scale=scale, view=view)
    height = min(max(340, 150 + (24 if len(data.layers) < 20 else 17) * len(data.layers)), 1600)
    subtitle = f"{plain(run.label, 80)} · {_extent(data)}"
    title = f"{sentence_case(data.quantity.title)} {plain(data.quantity.symbol)} of each layer"
    figure = new_figure(look, title, subtitle, height=height)
    if data.note:
        say(figure, plain(data.note), look)
        return figure.update_layout(xaxis={"visible": False}, yaxis={"visible": False})
    # Plain names are unique, and so is their order: they are the categories of the axis.
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
    # What stands below a log axis (zeros) has the lowest colour, not a hole.
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
        y=names,  # all of them: Plotly fails on a category axis of which a heatmap has only some
        z=np.where(data.nonfinite, 1.0, np.nan).astype(np.float32),
        colorscale=[(0, theme.alert), (1, theme.alert)],
        showscale=False,
        hoverongaps=False,
        hovertemplate="%{y}<br>step %{x}<br>not finite<extra></extra>",
    )
    # A heatmap has no place in a legend: an empty trace stands there for it.
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
