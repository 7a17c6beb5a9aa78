"""The ridgeline figure: the data, drawn by Plotly in one of two styles."""

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
    """Draw how a quantity is distributed over the layers, step after step.

    One panel a run, all on the same axes, so that equal heights mean equally many layers. The
    first step is at the far end (or the top), later ones in front of it; colour tells the time.
    Small marks at an axis' end count the layers that are out of view there.

    Parameters
    ----------
    style : "3d" or "flat"
        To be turned with the mouse, or seen from the front with each ridge a little lower.
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
        As :func:`ridgeline_data`; or there is no such style or theme.
    MissingDependencyError
        Plotly is not installed.
    """
    if style not in ("3d", "flat"):
        raise UsageError(f"'{style}' is not a style; choose one of: 3d, flat")
    look = theme_of(theme)
    data = ridgeline_data(
        runs, quantity, ridges=ridges, buckets=buckets, scale=scale, view=view, smooth=smooth
    )
    return (draw_3d if style == "3d" else draw_flat)(data, look)
