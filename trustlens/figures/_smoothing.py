"""A noisy series and its exponential moving averages. Adam computes such averages of gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trustlens.errors import UsageError
from trustlens.figures.panels import Panel, caption, panels
from trustlens.figures.theme import (
    Theme,
    ThemeName,
    alpha,
    color_at,
    graph_objects,
    new_figure,
    plain,
    theme_of,
    write_message,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

BETAS: Final = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class SmoothingData:
    """A series and its exponential moving averages.

    Attributes
    ----------
    series : float64 array of shape (n,)
        NaN if the value is not finite.
    betas : tuple of float
    averages : float64 array of shape (betas, n)
        m ← βm + (1−β)x, starting with m = 0.
    debiased : float64 array of shape (betas, n)
        ``averages`` times 1/(1−βᵗ), where t is the number of finite values so far; NaN before the
        first finite value.
    note : str
        Why there is nothing to draw; empty if there are finite values.
    """

    series: NDArray[np.float64]
    betas: tuple[float, ...]
    averages: NDArray[np.float64]
    debiased: NDArray[np.float64]
    note: str


def example_series(count: int = 500, *, seed: int = 0) -> NDArray[np.float64]:
    """Return a noisy parabola, float64 of shape (count,).

    It is the example of the article "An intuitive understanding of the LAMB optimizer".
    """
    x = np.linspace(-4, 4, count)
    return 1 - (x / 3) ** 2 + np.random.default_rng(seed).normal(0, 0.1, count)


def smoothing_data(
    series: ArrayLike | None = None, betas: Sequence[float] = BETAS
) -> SmoothingData:
    """Return exponential moving averages of a series, without and with debiasing.

    Parameters
    ----------
    series : array of shape (n,), optional
        The series, such as a logged loss; by default :func:`example_series`. Values that are not
        finite are skipped: the averages do not change there.
    betas : sequence of float
        Values in [0, 1).

    Raises
    ------
    UsageError
        If a β is not in [0, 1), or the series is not one-dimensional.
    """
    values = example_series() if series is None else np.array(series, np.float64)
    if values.ndim != 1:
        raise UsageError(f"a series of shape {values.shape} cannot be smoothed; pass one dimension")
    for beta in betas:
        if not 0 <= beta < 1:
            raise UsageError(f"β = {beta} does not give a moving average; choose 0 ≤ β < 1")
    beta = np.array(betas, np.float64)
    averages = np.empty((len(beta), len(values)))
    debiased = np.full_like(averages, np.nan)
    average, power = np.zeros(len(beta)), np.ones(len(beta))  # power: βᵗ
    for t, value in enumerate(values.tolist()):
        if np.isfinite(value):
            average = beta * average + (1 - beta) * value
            power = power * beta
        averages[:, t] = average
        if power.max(initial=0.0) < 1:
            debiased[:, t] = average / (1 - power)
    values[~np.isfinite(values)] = np.nan
    note = "" if np.isfinite(values).any() else "The series has no finite value to smooth."
    return SmoothingData(values, tuple(beta.tolist()), averages, debiased, note)


def smoothing(
    series: ArrayLike | None = None,
    betas: Sequence[float] = BETAS,
    *,
    debias: bool | None = None,
    theme: ThemeName = "light",
) -> go.Figure:
    """Draw a noisy series and its moving averages: a larger β gives a smoother, delayed curve.

    Parameters
    ----------
    debias : bool, optional
        True draws the averages with the debias factor, False draws the averages without it. By
        default both are drawn side by side.
    theme : "light" or "dark"
    series, betas
        See :func:`smoothing_data`.

    Returns
    -------
    plotly.graph_objects.Figure
        Show it with ``config=trustlens.figures.PLOTLY_CONFIG``.

    Raises
    ------
    UsageError
        As :func:`smoothing_data`; or if there is no such theme.
    MissingDependencyError
        If Plotly is not installed.
    """
    look = theme_of(theme)
    data = smoothing_data(series, betas)
    figure = new_figure(look, "Smoothing", "m ← βm + (1−β)x, starting with m = 0", height=480)
    if data.note:
        write_message(figure, plain(data.note), look)
        return figure.update_layout(xaxis={"visible": False}, yaxis={"visible": False})
    shown = (False, True) if debias is None else (debias,)
    for number, (debiased, place) in enumerate(
        zip(shown, panels(len(shown), gap=0.05, head=0.17), strict=True), 1
    ):
        _draw(figure, data, place, number, look, debiased=debiased)
    return figure.update_layout(
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"}
    )


def _draw(
    figure: go.Figure,
    data: SmoothingData,
    place: Panel,
    number: int,
    theme: Theme,
    *,
    debiased: bool,
) -> None:
    suffix = "" if number == 1 else str(number)
    title = "with the debias factor" if debiased else "without the debias factor"
    below = (
        "m / (1−βᵗ): the start is no longer biased to 0"
        if debiased
        else "the start is biased to 0, longest for the largest β"
    )
    caption(figure, f"<b>Averages {title}</b>", below, place, theme)
    figure.update_layout(
        {
            f"xaxis{suffix}": {
                "domain": list(place.x),
                "anchor": f"y{suffix}",
                "matches": "x" if suffix else None,
                "title": {"text": "step t"},
                "showgrid": False,
                "zeroline": False,
                "showline": True,
            },
            f"yaxis{suffix}": {
                "domain": list(place.y),
                "anchor": f"x{suffix}",
                "matches": "y" if suffix else None,
                "zerolinecolor": theme.axis,
            },
        }
    )
    objects = graph_objects()
    time = np.arange(1, len(data.series) + 1)
    axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "showlegend": number == 1}
    figure.add_trace(
        objects.Scatter(
            x=time,
            y=data.series,
            mode="markers",
            marker={"size": 3, "color": alpha(theme.muted, 0.55)},
            name="series x",
            legendgroup="x",
            hovertemplate="t %{x}: %{y:.4g}<extra>x</extra>",
            **axes,
        )
    )
    ramp = theme.sequential[1:-2] if theme.name == "light" else theme.sequential[3:]
    for row, beta in enumerate(data.betas):
        share = row / max(len(data.betas) - 1, 1)
        figure.add_trace(
            objects.Scatter(
                x=time,
                y=(data.debiased if debiased else data.averages)[row],
                mode="lines",
                line={"width": 2.4, "color": color_at(ramp, share)},
                name=f"β = {beta:g}",
                legendgroup=f"{beta}",
                hovertemplate=f"t %{{x}}: %{{y:.4g}}<extra>β = {beta:g}</extra>",
                **axes,
            )
        )
