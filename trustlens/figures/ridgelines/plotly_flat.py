"""Ridgelines in a front view, each below the previous one, as in TensorBoard's offset mode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

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
    alpha,
    color_at,
    graph_objects,
    mix,
    new_figure,
    plain,
    write_message,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

_PEAK: Final = 0.22
"""Height of the highest ridge, as a fraction of the time axis."""

_SYMBOL: Final = {"below": "triangle-left", "above": "triangle-right", "nonfinite": "x"}


def draw_flat(data: RidgelineData, theme: Theme) -> go.Figure:
    """Draw ridges as overlapping outlines, with one panel per run."""
    rows = (len(data.runs) + 1) // 2
    figure = new_figure(theme, *quantity_heading(data.quantity), height=150 + 520 * rows)
    for number, (run, panel) in enumerate(
        zip(data.runs, panels(len(data.runs), foot=0.1), strict=True), 1
    ):
        suffix = "" if number == 1 else str(number)
        axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
        run_caption(figure, run.label, panel, theme, color=run.color, below=extent(run))
        figure.update_layout(
            {
                f"xaxis{suffix}": _value_axis(data, panel, suffix, theme),
                f"yaxis{suffix}": _time_axis(data, panel, suffix),
            }
        )
        if run.note:
            write_message(figure, plain(run.note), theme, x=sum(panel.x) / 2, y=sum(panel.y) / 2)
        else:
            figure.add_traces([trace.update(axes) for trace in _ridges(data, run, theme)])
        figure.add_traces([_mark(data, mark, theme).update(axes) for mark in data.marks(run)])
    return figure.update_layout(showlegend=False, hovermode="closest", margin={"l": 24, "r": 64})


def _value_axis(data: RidgelineData, panel: Panel, suffix: str, theme: Theme) -> dict[str, Any]:
    low, high = (float(x) for x in on_axis(data.edges[[0, -1]], data.scale))
    shown = ticks(float(data.edges[0]), float(data.edges[-1]), data.scale)
    room = 0.025 * (high - low)
    return {
        "domain": list(panel.x),
        "anchor": f"y{suffix}",
        "type": data.scale,
        "range": [low - room, high + room],
        "tickvals": [value for value, _ in shown],
        "ticktext": [text for _, text in shown],
        "title": {"text": quantity_axis(data.quantity)},
        "matches": "x" if suffix else None,
        "showline": True,
        "ticks": "outside",
        "zeroline": False,
        "linecolor": theme.axis,
    }


def _time_axis(data: RidgelineData, panel: Panel, suffix: str) -> dict[str, Any]:
    first, last = data.time
    span = last - first
    return {
        "domain": list(panel.y),
        "anchor": f"x{suffix}",
        "side": "right",
        # Reversed: the first step is at the top, with a margin above it for its ridge.
        "range": [last + 0.02 * span, first - (_PEAK + 0.02) * span],
        "title": {"text": "step"},
        "matches": "y" if suffix else None,
        "showgrid": False,
        "zeroline": False,
        **whole_ticks(first, last),
    }


def _ridges(data: RidgelineData, run: RunRidges, theme: Theme) -> list[go.Scatter]:
    first, last = data.time
    rise = _PEAK * (last - first) / data.peak
    ramp = theme.runs[run.color].ramp
    dark = theme.name == "dark"
    x = np.concatenate([data.edges[:1], data.values, data.edges[-1:]])
    traces: list[go.Scatter] = []
    rows = zip(run.steps.tolist(), run.heights, data.lateness(run).tolist(), strict=True)
    for step, heights, share in rows:
        color = color_at(ramp, share)
        padded = np.pad(heights, 1)  # height 0 at both ends, even if the view cuts a bump
        traces.append(
            graph_objects().Scatter(
                x=x,
                y=step - rise * padded.astype(np.float64),
                mode="lines",
                # "toself" closes the outline along the base of the ridge without a line.
                fill="toself",
                fillcolor=alpha(mix(color, theme.background, 0.25 if dark else 0.1), 0.94),
                line={"color": mix(color, theme.crest, 0.5 if dark else 0.7), "width": 1.1},
                customdata=padded,
                hoveron="points",
                hovertemplate=(
                    f"step {step}<br>{data.quantity.symbol} %{{x:.3g}}"
                    "<br>%{customdata:.2f} layers per bucket<extra></extra>"
                ),
            )
        )
    return traces


def _mark(data: RidgelineData, mark: Mark, theme: Theme) -> go.Scatter:
    low, high = (float(x) for x in on_axis(data.edges[[0, -1]], data.scale))
    room = 0.012 * (high - low)
    place = {"below": low - room, "above": high + room, "nonfinite": high + room}[mark.side]
    return graph_objects().Scatter(
        x=np.full(len(mark.steps), 10.0**place if data.scale == "log" else place),
        y=mark.steps,
        mode="markers",
        marker={
            "symbol": _SYMBOL[mark.side],
            "size": np.minimum(4 + mark.counts**0.5, 11),
            "color": theme.alert,
            "line": {"width": 0},
        },
        text=list(mark.words),
        hovertemplate="%{text}<extra></extra>",
    )
