"""The debias factor 1/(1−βᵗ) over time.

The factor corrects the bias of Adam's moving averages, which start at 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from trustlens.analysis.run import Run
from trustlens.errors import UsageError
from trustlens.figures.axis import Scale, axis_edges, number, on_axis, parse_scale, ticks
from trustlens.figures.panels import Panel, caption, panels
from trustlens.figures.sampling import read_sample, span_of
from trustlens.figures.theme import (
    Theme,
    ThemeName,
    alpha,
    assign_colors,
    graph_objects,
    new_figure,
    plain,
    theme_of,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

BETAS: Final = (0.9, 0.99, 0.999)

_STEPS: Final = 200  # number of steps shown by default
_POINTS: Final = 400  # maximum number of points of a curve
_FADED: Final = 1.01  # a factor up to this counts as 1


@dataclass(frozen=True, slots=True)
class Recorded:
    """The factor that a run recorded: minimum and maximum over the layers that use this β.

    Attributes
    ----------
    steps : int64 array of shape (points,)
    low, high : float64 arrays of shape (points,)
    """

    steps: NDArray[np.int64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class DebiasPanel:
    """The factor 1/(1−βᵗ) of one β.

    Attributes
    ----------
    symbol : str
        "β₁", "β₂" or "β₁ = β₂" if the run recorded the factor, else "β".
    beta : float
    steps : int64 array of shape (points,)
        Steps t, from 1.
    factors : float64 array of shape (points,)
    faded : int
        The first t at which the factor is within 1 % of 1.
    recorded : Recorded or None
        The factor that the run recorded for this β; None if there is none, or no run was given.
    """

    symbol: str
    beta: float
    steps: NDArray[np.int64]
    factors: NDArray[np.float64]
    faded: int
    recorded: Recorded | None


@dataclass(frozen=True, slots=True)
class DebiasData:
    """One panel per β.

    ``color`` is the run's key in ``Theme.runs``. If a run was given that recorded no factor for
    these β, ``note`` says why. Otherwise ``note`` is empty.
    """

    panels: tuple[DebiasPanel, ...]
    color: str
    note: str


@dataclass(frozen=True, slots=True)
class _UsedBeta:
    """A β that some layers of a run use.

    ``place`` is 0 for β₁ and 1 for β₂. ``layers`` are the indices of the layers.
    """

    place: int
    beta: float
    layers: tuple[int, ...]


def debias_factor(beta: float, steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return 1/(1−βᵗ) for each t in ``steps`` (Kingma and Ba, "Adam", 2015, algorithm 1)."""
    if beta == 0:
        return np.ones(len(steps))
    # Compute βᵗ − 1 with expm1: 1 − βᵗ is inaccurate if β is close to 1.
    return -1.0 / np.expm1(steps * math.log(beta))


def debias_data(
    betas: Sequence[float] | None = None, *, steps: int | None = None, run: Run | None = None
) -> DebiasData:
    """Return the debias factor over time, computed and, if a run is given, as recorded.

    Parameters
    ----------
    betas : sequence of float, optional
        Values in [0, 1). By default those of the run; without a run 0.9, 0.99 and 0.999.
    steps : int, optional
        Number of steps to show. By default those of the run; without a run 200.
    run : Run, optional
        The run whose recorded factors to return.

    Raises
    ------
    UsageError
        If a β is not in [0, 1), or ``steps`` is less than 1.
    """
    used = [] if run is None else _used_betas(run)
    shown = list(betas) if betas is not None else [u.beta for u in used] or list(BETAS)
    for beta in shown:
        if not 0 <= beta < 1:
            raise UsageError(f"β = {beta} has no debias factor; choose 0 ≤ β < 1")
    count = steps if steps is not None else _STEPS if run is None else max(run.last_step, 1)
    if count < 1:
        raise UsageError(f"{count} steps cannot be shown; show at least 1")
    time = np.unique(np.geomspace(1, count, _POINTS).round().astype(np.int64))
    if count <= _POINTS:
        time = np.arange(1, count + 1)
    drawn: list[DebiasPanel] = []
    for beta in dict.fromkeys(shown):
        same = [u for u in used if u.beta == beta]
        recorded = _recorded(run, same[0], count) if run is not None and same else None
        symbol = "β" if recorded is None else " = ".join(f"β{'₁₂'[u.place]}" for u in same)
        factors = debias_factor(beta, time)
        drawn.append(DebiasPanel(symbol, beta, time, factors, _steps_to_fade(beta), recorded))
    note = ""
    if run is not None and all(panel.recorded is None for panel in drawn):
        note = f"{run.name} recorded no debias factor: {run.family} does not use these β."
    color = "blue" if run is None else assign_colors([run])[0]
    return DebiasData(tuple(drawn), color, note)


def _steps_to_fade(beta: float) -> int:
    if beta == 0:
        return 1
    return max(1, math.ceil(math.log(1 - 1 / _FADED) / math.log(beta)))


def _used_betas(run: Run) -> list[_UsedBeta]:
    """Return each β of the run's parameter groups and its layers: every β₁, then every β₂."""
    layers: dict[tuple[int, float], list[int]] = {}
    for place in (0, 1):
        for at, layer in enumerate(run.info.layers):
            betas = _betas(run, layer.optimizer, layer.group)
            if place < len(betas):
                layers.setdefault((place, betas[place]), []).append(at)
    return [_UsedBeta(place, beta, tuple(at)) for (place, beta), at in layers.items()]


def _betas(run: Run, optimizer: int, group: int) -> list[float]:
    try:
        betas = run.info.optimizers[optimizer].groups[group]["betas"]
        found = [float(beta) for beta in betas]
    except (IndexError, KeyError, TypeError, ValueError):
        return []  # the optimizer has no betas, or they are not numbers
    return [beta for beta in found if 0 <= beta < 1]


def _recorded(run: Run, used: _UsedBeta, count: int) -> Recorded | None:
    first, last = span_of([run])
    if not 0 < first <= count:
        return None
    read = read_sample(run, f"debias{used.place + 1}", _POINTS, (first, min(last, count)))
    values = read.values[:, list(used.layers)]
    finite = np.isfinite(values).any(axis=1)
    if not finite.any():
        return None
    values = values[finite]
    return Recorded(read.steps[finite], np.nanmin(values, axis=1), np.nanmax(values, axis=1))


def debias(
    betas: Sequence[float] | None = None,
    *,
    steps: int | None = None,
    run: Run | None = None,
    scale: Scale = "linear",
    theme: ThemeName = "light",
) -> go.Figure:
    """Draw the debias factor over time, one panel per β, each with its own y axis.

    Parameters
    ----------
    scale : "linear" or "log"
        The scale of both axes.
    theme : "light" or "dark"
    betas, steps, run
        See :func:`debias_data`.

    Returns
    -------
    plotly.graph_objects.Figure
        Show it with ``config=trustlens.figures.PLOTLY_CONFIG``.

    Raises
    ------
    UsageError
        As :func:`debias_data`; or if there is no such scale or theme.
    MissingDependencyError
        If Plotly is not installed.
    """
    look = theme_of(theme)
    scale = parse_scale(scale)
    data = debias_data(betas, steps=steps, run=run)
    rows = -(-len(data.panels) // 3)
    subtitle = "1/(1−βᵗ), which corrects a moving average that starts at 0"
    if run is not None:
        subtitle = data.note or f"Line: 1/(1−βᵗ). Dots: recorded by {run.name}."
    figure = new_figure(look, "Debias factor", plain(subtitle), height=130 + 300 * rows)
    places = panels(len(data.panels), columns=3, gap=0.08, head=0.17, foot=0.2)
    for index, (panel, place) in enumerate(zip(data.panels, places, strict=True), 1):
        _draw(figure, panel, place, index, look, color=data.color, scale=scale)
    return figure.update_layout(showlegend=False, margin={"l": 60})


def _draw(
    figure: go.Figure,
    panel: DebiasPanel,
    place: Panel,
    index: int,
    theme: Theme,
    *,
    color: str,
    scale: Scale,
) -> None:
    suffix = "" if index == 1 else str(index)
    first, last = float(f"{panel.factors[0]:.6g}"), float(panel.steps[-1])
    below = f"starts at {number(first)}, within 1 % of 1 after {panel.faded} steps"
    caption(figure, f"<b>{panel.symbol} = {panel.beta:g}</b>", below, place, theme)
    axis = {"zeroline": False, "ticklabelstandoff": 4}
    figure.update_layout(
        {
            f"xaxis{suffix}": {
                **axis,
                **_axis(0.0 if scale == "linear" else 1.0, last, scale),
                "domain": list(place.x),
                "anchor": f"y{suffix}",
                "title": {"text": "step"},
                "showgrid": False,
                "showline": True,
            },
            f"yaxis{suffix}": {
                **axis,
                **_axis(1.0, max(first, 1.1), scale),
                "domain": list(place.y),
                "anchor": f"x{suffix}",
            },
        }
    )
    traces = [_line(panel, theme)]
    if panel.recorded is not None:
        traces.append(_points(panel.recorded, theme.runs[color].line))
    axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
    figure.add_traces([trace.update(axes) for trace in traces])


def _axis(low: float, high: float, scale: Scale) -> dict[str, Any]:
    """Return type, range and ticks of an axis. A margin keeps dots at the ends from being cut."""
    first, last = (float(edge) for edge in axis_edges(low, high, 1, scale, margin=0.04))
    shown = dict(ticks(low, high, scale, most=6))
    if scale == "linear" and low == 1:
        shown = {1.0: "1", **{v: t for v, t in shown.items() if v - 1 > 0.08 * (high - 1)}}
    return {
        "type": scale,
        "range": [float(x) for x in on_axis(np.array([first, last]), scale)],
        "tickvals": list(shown),
        "ticktext": list(shown.values()),
    }


def _line(panel: DebiasPanel, theme: Theme) -> Any:
    has_dots = panel.recorded is not None
    return graph_objects().Scatter(
        x=panel.steps,
        y=panel.factors,
        mode="lines",
        line={
            "color": theme.muted if has_dots else theme.accent,
            "width": 1.5 if has_dots else 2.2,
        },
        name="1/(1−βᵗ)",
        hovertemplate="step %{x}<br>1/(1−βᵗ) = %{y:.5g}<extra></extra>",
    )


def _points(recorded: Recorded, color: str) -> Any:
    """Return dots at the recorded minimum, with bars up to the maximum if layers differ."""
    spread = recorded.high - recorded.low
    return graph_objects().Scatter(
        x=recorded.steps,
        y=recorded.low,
        mode="markers",
        marker={"color": color, "size": 5},
        error_y={
            "type": "data",
            "symmetric": False,
            "array": spread,
            "arrayminus": np.zeros(len(spread)),
            "color": alpha(color, 0.5),
            "thickness": 1,
            "width": 0,
            "visible": bool((spread > 1e-6 * recorded.high).any()),
        },
        name="recorded",
        customdata=recorded.high,
        hovertemplate="step %{x}<br>recorded %{y:.5g} to %{customdata:.5g}<extra></extra>",
    )
