"""Ridgelines in a 3D scene: a vertical surface (curtain) and a crest line for each step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from trustlens.figures.axis import on_axis, ticks
from trustlens.figures.panels import (
    Panel,
    panels,
    quantity_axis,
    quantity_heading,
    run_caption,
    whole_ticks,
)
from trustlens.figures.ridgelines.data import Mark, RidgelineData, RunRidges
from trustlens.figures.ridgelines.words import extent
from trustlens.figures.theme import (
    Theme,
    color_at,
    colorscale,
    graph_objects,
    mix,
    new_figure,
    plain,
    write_message,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

_ASPECT: Final = {"x": 1.35, "y": 1.6, "z": 0.62}
_CAMERA: Final = {
    "eye": {"x": 1.22, "y": -1.8, "z": 0.98},
    "center": {"x": 0.0, "y": 0.0, "z": -0.22},
}
_SHADES: Final = 16  # colours of a curtain, from its foot to its crest
_SYMBOL: Final = {"below": "diamond", "above": "diamond", "nonfinite": "cross"}


def draw_3d(data: RidgelineData, theme: Theme) -> go.Figure:
    """Draw ridges as curtains, with one scene per run."""
    rows = (len(data.runs) + 1) // 2
    figure = new_figure(theme, *quantity_heading(data.quantity), height=110 + 530 * rows)
    for number, (run, panel) in enumerate(zip(data.runs, panels(len(data.runs)), strict=True), 1):
        scene = "scene" if number == 1 else f"scene{number}"
        run_caption(figure, run.label, panel, theme, color=run.color, below=extent(run))
        figure.update_layout({scene: _scene(data, panel, theme)})
        if run.note:
            write_message(figure, plain(run.note), theme, x=sum(panel.x) / 2, y=sum(panel.y) / 2)
        visible = run.heights > 0.004 * data.peak
        if visible.any():
            figure.add_trace(_curtains(data, run, visible, theme).update(scene=scene))
            figure.add_trace(_crests(data, run, visible, theme).update(scene=scene))
        for mark in data.marks(run):
            figure.add_trace(_mark(data, mark, theme).update(scene=scene))
    # Plotly shows 2D axes if a scene is empty; hide them.
    hidden = {"visible": False}
    return figure.update_layout(
        showlegend=False, margin={"l": 24, "r": 24, "b": 8}, xaxis=hidden, yaxis=hidden
    )


def _scene(data: RidgelineData, panel: Panel, theme: Theme) -> dict[str, Any]:
    axis = {
        "gridcolor": theme.grid,
        "linecolor": theme.axis,
        "showbackground": False,
        "zeroline": False,
        "showspikes": False,
        "tickangle": 0,
        "tickfont": {"color": theme.muted, "size": 12},
    }
    low, high = (float(x) for x in on_axis(data.edges[[0, -1]], data.scale))
    first, last = data.time
    shown = ticks(float(data.edges[0]), float(data.edges[-1]), data.scale, most=6)
    title = {"font": {"color": theme.muted, "size": 13}}
    # Plotly partly clips marks exactly on the edge of a scene: add a margin.
    wide, deep = 0.03 * (high - low), 0.02 * (last - first)
    floor = {**axis, "showbackground": True, "backgroundcolor": theme.panel}
    return {
        "domain": {"x": list(panel.x), "y": list(panel.y)},
        "aspectmode": "manual",
        "aspectratio": _ASPECT,
        "camera": _CAMERA,
        "dragmode": "orbit",
        "xaxis": {
            **axis,
            "range": [low - wide, high + wide],
            "tickvals": [float(on_axis(value, data.scale)) for value, _ in shown],
            "ticktext": [text for _, text in shown],
            "title": {**title, "text": quantity_axis(data.quantity)},
        },
        # Reversed: the first step is at the far end.
        "yaxis": {
            **axis,
            "range": [last + deep, first - deep],
            **whole_ticks(first, last),
            "title": {**title, "text": "step"},
        },
        "zaxis": {
            **floor,
            "range": [-0.004 * data.peak, 1.06 * data.peak],
            "showticklabels": False,
            "nticks": 6,
            "title": {**title, "text": ""},
        },
    }


def _curtains(
    data: RidgelineData, run: RunRidges, visible: NDArray[np.bool_], theme: Theme
) -> go.Mesh3d:
    rows, buckets = run.heights.shape
    # Vertices: foot and crest at each bucket's centre; two triangles between neighbours.
    vertex = np.arange(rows * buckets * 2).reshape(rows, buckets, 2)
    drawn = visible[:, 1:] | visible[:, :-1]
    foot, crest = vertex[:, :-1][drawn].T
    next_foot, next_crest = vertex[:, 1:][drawn].T
    corners = np.concatenate([[foot, next_foot, crest], [crest, next_foot, next_crest]], axis=1)
    used, corners = np.unique(corners, return_inverse=True)
    i, j, k = corners.reshape(3, -1).astype(np.int32)

    ramp = theme.runs[run.color].ramp
    shades = np.empty((rows, _SHADES), object)
    for row, share in enumerate(data.lateness(run).tolist()):
        full = color_at(ramp, share)
        dim = mix(full, theme.background, 0.6)
        shades[row] = [mix(dim, full, min(1, 0.3 + 0.1 * shade)) for shade in range(_SHADES)]
    level = np.zeros((rows, buckets, 2), np.intp)
    level[:, :, 1] = np.round(run.heights / data.peak * (_SHADES - 1))
    colors = shades[np.arange(rows)[:, None, None], level]

    heights = np.zeros((rows, buckets, 2), np.float32)
    heights[:, :, 1] = run.heights
    x = np.broadcast_to(data.centers.astype(np.float32)[:, None], heights.shape)
    y = np.broadcast_to(run.steps.astype(np.float32)[:, None, None], heights.shape)
    return graph_objects().Mesh3d(
        x=x.ravel()[used],
        y=y.ravel()[used],
        z=heights.ravel()[used],
        i=i,
        j=j,
        k=k,
        vertexcolor=colors.ravel()[used].tolist(),
        lighting={"ambient": 1, "diffuse": 0, "specular": 0, "fresnel": 0},
        hoverinfo="skip",
    )


def _crests(
    data: RidgelineData, run: RunRidges, visible: NDArray[np.bool_], theme: Theme
) -> go.Scatter3d:
    rows, buckets = run.heights.shape
    near = visible.copy()
    near[:, 1:] |= visible[:, :-1]
    near[:, :-1] |= visible[:, 1:]
    # A column of NaN ends each ridge's line. Draw the line slightly in front of its curtain and
    # above it: at the same depth (z-fighting) the line would look dashed.
    z = np.full((rows, buckets + 1), np.nan, np.float32)
    z[:, :-1] = np.where(near, run.heights + 0.003 * data.peak, np.nan)
    first, last = data.time
    in_front = 0.15 * (last - first) / max(rows, 20)
    x = np.append(data.centers, np.nan).astype(np.float32)
    value = np.append(data.values, np.nan)
    ramp = tuple(mix(color, theme.crest, 0.55) for color in theme.runs[run.color].ramp)
    shape = z.shape
    return graph_objects().Scatter3d(
        x=np.broadcast_to(x, shape).ravel(),
        y=np.broadcast_to(run.steps[:, None] + in_front, shape).ravel().astype(np.float32),
        z=z.ravel(),
        mode="lines",
        connectgaps=False,
        line={
            "width": 2.5,
            "color": np.repeat(data.lateness(run).astype(np.float32), buckets + 1),
            "colorscale": colorscale(ramp),
            "cmin": 0,
            "cmax": 1,
        },
        customdata=np.broadcast_to(value, shape).ravel(),
        hovertemplate=(
            f"step %{{y:.0f}}<br>{data.quantity.symbol} %{{customdata:.3g}}"
            "<br>%{z:.2f} layers per bucket<extra></extra>"
        ),
    )


def _mark(data: RidgelineData, mark: Mark, theme: Theme) -> go.Scatter3d:
    low, high = (float(x) for x in on_axis(data.edges[[0, -1]], data.scale))
    place = {"below": low, "above": high, "nonfinite": high + 0.02 * (high - low)}[mark.side]
    return graph_objects().Scatter3d(
        x=np.full(len(mark.steps), place),
        y=mark.steps,
        z=np.zeros(len(mark.steps)),
        mode="markers",
        marker={
            "symbol": _SYMBOL[mark.side],
            "size": np.minimum(4 + mark.counts**0.5, 9),
            "color": theme.alert,
            "line": {"width": 0},
        },
        text=list(mark.words),
        hovertemplate="%{text}<extra></extra>",
    )
