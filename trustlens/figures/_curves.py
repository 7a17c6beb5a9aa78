"""Curves of several runs over time: logged metrics, or quantities of one layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from trustlens.analysis.names import quantity as quantity_named
from trustlens.analysis.run import Run
from trustlens.errors import UsageError
from trustlens.figures.axis import (
    Scale,
    View,
    axis_edges,
    on_axis,
    parse_scale,
    ticks,
    view_range,
)
from trustlens.figures.panels import Panel, caption, panels, step_ticks
from trustlens.figures.sampling import downsample_indices, run_list
from trustlens.figures.theme import (
    Theme,
    ThemeName,
    assign_colors,
    graph_objects,
    new_figure,
    plain,
    theme_of,
    write_message,
)
from trustlens.schema import Quantity

if TYPE_CHECKING:
    import plotly.graph_objects as go

LAYER_QUANTITIES: Final = ("trust_ratio", "weight_norm", "direction_norm")
"""The quantities of a layer that are drawn by default: r, r₁ and r₂."""

_LOG_RATIO: Final = 50.0  # a metric gets a log axis if its maximum exceeds this × its median


@dataclass(frozen=True, slots=True)
class Curve:
    """The curve of one metric or quantity of one run.

    Attributes
    ----------
    name, label : str
        Name and label of the run, not escaped.
    color : str
        The run's key in ``Theme.runs``.
    steps : int64 array of shape (points,)
    values : float64 array of shape (points,)
        NaN if the value is not finite, which interrupts the line.
    nonfinite : int64 array
        Steps at which the value is infinite or NaN.
    """

    name: str
    label: str
    color: str
    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    nonfinite: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CurvePanel:
    """The curves of one metric or quantity on an axis from ``low`` to ``high``.

    ``title`` is plain text, and has to be escaped before Plotly shows it.
    """

    name: str
    title: str
    scale: Scale
    low: float
    high: float
    curves: tuple[Curve, ...]


@dataclass(frozen=True, slots=True)
class CurvesData:
    """Panels with the curves of all runs; ``note`` says why there are no panels, or is empty."""

    panels: tuple[CurvePanel, ...]
    note: str


@dataclass(frozen=True, slots=True)
class _Series:
    steps: NDArray[np.int64]
    values: NDArray[np.float64]


def curves_data(
    runs: Run | Sequence[Run],
    names: Sequence[str] | None = None,
    *,
    layer: str | None = None,
    points: int = 2000,
    scale: Literal["auto", "log", "linear"] = "auto",
    view: View = "robust",
) -> CurvesData:
    """Return logged metrics over time, or quantities of one layer, of several runs.

    Parameters
    ----------
    runs : Run or sequence of Run
    names : sequence of str, optional
        Names of metrics, or of quantities if a layer is given. By default all metrics, or the
        quantities of :data:`LAYER_QUANTITIES`.
    layer : str, optional
        The layer whose quantities to return. The curves of runs without this layer are empty.
    points : int
        Approximate number of points per curve. A longer curve is divided into intervals. Only the
        lowest value, the highest value and one value that is not finite are drawn in each interval,
        so that no short event is lost.
    scale : "auto", "log" or "linear"
        ``"auto"`` is the preferred scale of a quantity. For a metric it is log if all values are
        positive and the maximum exceeds 50 times the median. If a value is ≤ 0, ``"auto"`` is
        linear.
    view : "robust", "full" or (low, high)
        The range of the axis. ``"robust"`` excludes outliers if they would flatten the rest, but
        always includes the start of each curve.

    Raises
    ------
    UsageError
        If no run is given, no run has a metric or layer of that name, or there is no such quantity,
        scale or view.
    """
    chosen = run_list(runs)
    colors = assign_colors(chosen)
    found = (
        _read_metrics(chosen, names)
        if layer is None
        else _read_quantities(chosen, layer, names, points)
    )
    drawn: list[CurvePanel] = []
    for name, series in found.items():
        quantity = None if layer is None else quantity_named(name)
        values = [part.values for part in series]
        axis = _choose_scale(values, quantity, scale)
        low, high = _axis_range(values, axis, view)
        drawn.append(
            CurvePanel(
                name=name,
                title=name if quantity is None else f"{quantity.title} {quantity.symbol}",
                scale=axis,
                low=low,
                high=high,
                curves=tuple(
                    _curve(run, color, part, points)
                    for run, color, part in zip(chosen, colors, series, strict=True)
                ),
            )
        )
    note = "" if drawn else "Nothing was logged. Log metrics with recorder.log(loss=loss)."
    return CurvesData(tuple(drawn), note)


def _read_metrics(runs: list[Run], names: Sequence[str] | None) -> dict[str, list[_Series]]:
    frames = [run.metrics() for run in runs]
    logged = list(dict.fromkeys(name for frame in frames for name in frame["name"].unique()))
    logged.sort(key=lambda name: "loss" not in name.lower())  # losses first
    for name in names or ():
        if name not in logged:
            choices = f"choose from: {', '.join(logged)}" if logged else "no metric was logged"
            raise UsageError(f"'{name}' is not a metric of these runs; {choices}")
    found: dict[str, list[_Series]] = {}
    for name in logged if names is None else names:
        found[name] = [
            _Series(frame["step"].to_numpy(np.int64)[at], frame["value"].to_numpy(np.float64)[at])
            for frame in frames
            for at in [(frame["name"] == name).to_numpy(np.bool_)]
        ]
    return found


def _read_quantities(
    runs: list[Run], layer: str, names: Sequence[str] | None, points: int
) -> dict[str, list[_Series]]:
    wanted = list(LAYER_QUANTITIES if names is None else names)
    if not any(layer in run.layer_names for run in runs):
        runs[0].layers(wanted, layers=[layer], steps=[])  # raises UsageError with suggestions
    found: dict[str, list[_Series]] = {name: [] for name in wanted}
    for run in runs:
        if layer in run.layer_names:
            samples = run.sample(list(found), points // 2, layers=[layer], thin=False)
            series = {name: _Series(*each.series(0)) for name, each in samples.items()}
        else:
            series = dict.fromkeys(found, _Series(np.empty(0, np.int64), np.empty(0)))
        for name, each in series.items():
            found[name].append(each)
    return found


def _choose_scale(
    values: Sequence[NDArray[np.float64]], quantity: Quantity | None, scale: str
) -> Scale:
    def auto() -> Scale:
        pooled = np.concatenate([part[np.isfinite(part)] for part in values])
        if not pooled.size or pooled.min() <= 0:
            return "linear"
        if quantity is not None:
            return quantity.scale
        return "log" if pooled.max() > _LOG_RATIO * np.median(pooled) else "linear"

    return parse_scale(scale, auto)


def _axis_range(
    values: Sequence[NDArray[np.float64]], scale: Scale, view: View
) -> tuple[float, float]:
    low, high = view_range(values, scale, view) or (0.1, 1.0)
    if view == "robust":
        starts = [float(part[np.isfinite(part)][0]) for part in values if np.isfinite(part).any()]
        starts = [start for start in starts if np.isfinite(on_axis(start, scale))]
        low, high = min([low, *starts]), max([high, *starts])
        whole = view_range(values, scale, "full") or (low, high)
        widths = np.diff(on_axis(np.array([low, high, *whole]), scale))[[0, 2]]
        if widths[1] <= 3 * widths[0]:
            low, high = whole
    margin = 0.0 if isinstance(view, tuple) else 0.04
    first, last = axis_edges(low, high, 1, scale, margin=margin)
    return float(first), float(last)


def _curve(run: Run, color: str, series: _Series, points: int) -> Curve:
    bad = ~np.isfinite(series.values)
    # A quantity that is NaN at all steps was not recorded; do not mark it as not finite.
    missing = bad.all() and not np.isinf(series.values).any()
    kept = np.empty(0, np.intp) if missing else downsample_indices(series.values, points)
    broken = np.where(bad, np.nan, series.values)
    return Curve(
        name=run.name,
        label=run.label,
        color=color,
        steps=series.steps[kept],
        values=broken[kept],
        nonfinite=series.steps[kept[bad[kept]]],
    )


def curves(
    runs: Run | Sequence[Run],
    names: Sequence[str] | None = None,
    *,
    layer: str | None = None,
    theme: ThemeName = "light",
    points: int = 2000,
    scale: Literal["auto", "log", "linear"] = "auto",
    view: View = "robust",
) -> go.Figure:
    """Draw logged metrics over time, or quantities of one layer, with one line per run.

    Each metric or quantity has its own panel. Triangles at the edge of a panel mark values beyond
    its range, crosses mark values that are not finite.

    Parameters
    ----------
    theme : "light" or "dark"
    runs, names, layer, points, scale, view
        See :func:`curves_data`.

    Returns
    -------
    plotly.graph_objects.Figure
        Show it with ``config=trustlens.figures.PLOTLY_CONFIG``.

    Raises
    ------
    UsageError
        As :func:`curves_data`; or if there is no such theme.
    MissingDependencyError
        If Plotly is not installed.
    """
    look = theme_of(theme)
    data = curves_data(runs, names, layer=layer, points=points, scale=scale, view=view)
    rows = max(1, (len(data.panels) + 1) // 2)
    title = "Training" if layer is None else f"Layer {plain(layer, 80)}"
    figure = new_figure(look, title, "over the optimizer's steps", height=140 + 340 * rows)
    if data.note:
        write_message(figure, plain(data.note), look)
        return figure.update_layout(xaxis={"visible": False}, yaxis={"visible": False})
    steps = [curve.steps for panel in data.panels for curve in panel.curves if len(curve.steps)]
    ends = [min(int(s[0]) for s in steps), max(int(s[-1]) for s in steps)] if steps else [0, 1]
    room = 0.015 * (ends[1] - ends[0]) or 0.5
    time = {"range": [ends[0] - room, ends[1] + room], **step_ticks(*ends)}
    places = panels(len(data.panels), gap=0.09, head=0.1, foot=0.2)
    for number, (panel, place) in enumerate(zip(data.panels, places, strict=True), 1):
        _draw(figure, panel, place, number, look, time=time)
    return figure.update_layout(
        hovermode="x unified",
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"},
    )


def _draw(
    figure: go.Figure,
    panel: CurvePanel,
    place: Panel,
    number: int,
    theme: Theme,
    *,
    time: dict[str, Any],
) -> None:
    suffix = "" if number == 1 else str(number)
    ends = [float(x) for x in on_axis(np.array([panel.low, panel.high]), panel.scale)]
    figure.update_layout(
        {
            f"xaxis{suffix}": {
                **time,
                "domain": list(place.x),
                "anchor": f"y{suffix}",
                "matches": "x" if suffix else None,
                "title": {"text": "step"},
                "showgrid": False,
                "zeroline": False,
                "showline": True,
            },
            f"yaxis{suffix}": {
                "domain": list(place.y),
                "anchor": f"x{suffix}",
                "type": panel.scale,
                "range": ends,
                "zeroline": False,
                **_log_ticks(panel),
            },
        }
    )
    caption(figure, f"<b>{plain(panel.title, 44)}</b>", "", place, theme)
    axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
    for curve in panel.curves:
        traces = [_line(curve, theme, legend=number == 1), *_marks(curve, panel, theme)]
        figure.add_traces([trace.update(axes) for trace in traces])
    if not any(np.isfinite(curve.values).any() for curve in panel.curves):
        x, y = sum(place.x) / 2, sum(place.y) / 2
        write_message(figure, "There is no finite value to draw.", theme, x=x, y=y)


def _log_ticks(panel: CurvePanel) -> dict[str, Any]:
    if panel.scale == "linear":
        return {}
    marks = ticks(panel.low, panel.high, "log")
    return {"tickvals": [value for value, _ in marks], "ticktext": [text for _, text in marks]}


def _line(curve: Curve, theme: Theme, *, legend: bool) -> Any:
    few = len(curve.steps) <= 40
    return graph_objects().Scatter(
        x=curve.steps,
        y=curve.values,
        mode="lines+markers" if few else "lines",
        line={"color": theme.runs[curve.color].line, "width": 1.8},
        marker={"size": 5},
        name=plain(curve.label, 56),
        legendgroup=f"{curve.color} {plain(curve.label)}",
        showlegend=legend,
        hovertemplate="%{y:.4g}",
    )


def _marks(curve: Curve, panel: CurvePanel, theme: Theme) -> list[Any]:
    over, under = curve.values > panel.high, curve.values < panel.low
    kinds = (
        ("triangle-up", curve.steps[over], curve.values[over], panel.high, "%{text}, out of view"),
        (
            "triangle-down",
            curve.steps[under],
            curve.values[under],
            panel.low,
            "%{text}, out of view",
        ),
        ("x", curve.nonfinite, curve.nonfinite, panel.high, "not finite"),
    )
    return [
        graph_objects().Scatter(
            x=steps,
            y=np.full(len(steps), place),
            mode="markers",
            marker={"symbol": symbol, "size": 7, "color": theme.runs[curve.color].line},
            cliponaxis=False,
            text=[f"{value:.4g}" for value in values.tolist()],
            name=plain(curve.label, 56),
            legendgroup=f"{curve.color} {plain(curve.label)}",
            showlegend=False,
            hovertemplate=template,
        )
        for symbol, steps, values, place, template in kinds
        if len(steps)
    ]
