"""The ridgeline figure, drawn by Plotly in one of two styles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from trustlens.analysis.run import Run
from trustlens.errors import UsageError
from trustlens.figures.axis import View
from trustlens.figures.ridgelines.data import ridgeline_data
from trustlens.figures.ridgelines.plotly_3d import draw_3d
from trustlens.figures.ridgelines.plotly_flat import draw_flat
from trustlens.figures.theme import ThemeName, theme_of

if TYPE_CHECKING:
    import plotly.graph_objects as go


def ridgeline(
    runs: Run | Sequence[Run],
    quantity: str = "trust_ratio",
    *,
    style: Literal["3d", "flat"] = "3d",
    theme: ThemeName = "light",
    ridges: int = 80,
    buckets: int = 160,
    scale: Literal["auto", "log", "linear"] = "auto",
    view: View = "robust",
    smooth: bool = True,
) -> go.Figure:
    """Draw the distribution of a quantity over the layers at several steps.

    Each run has a panel. All panels have the same axes, so that equal heights mean equal numbers
    of layers. The first step is at the far end in style "3d" and at the top in style "flat"; later
    steps are in front of earlier ones. The colour shows the time. Small marks at the ends of an
    axis show layers out of view.

    Parameters
    ----------
    style : "3d" or "flat"
        A 3D scene that the mouse turns, or a front view with each ridge below the previous one.
    theme : "light" or "dark"
    runs, quantity, ridges, buckets, scale, view, smooth
        See :func:`ridgeline_data`.

    Returns
    -------
    plotly.graph_objects.Figure
        Show it with ``config=trustlens.figures.PLOTLY_CONFIG``.

    Raises
    ------
    UsageError
        As :func:`ridgeline_data`; or if there is no such style or theme.
    MissingDependencyError
        If Plotly is not installed.
    """
    if style not in ("3d", "flat"):
        raise UsageError(f"'{style}' is not a style; choose one of: 3d, flat")
    look = theme_of(theme)
    data = ridgeline_data(
        runs, quantity, ridges=ridges, buckets=buckets, scale=scale, view=view, smooth=smooth
    )
    return (draw_3d if style == "3d" else draw_flat)(data, look)
