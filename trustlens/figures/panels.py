"""Panels of a figure with one run each, and the words about a quantity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trustlens.figures.theme import Theme, plain
from trustlens.schema import Quantity

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from trustlens.figures.ridgeline import RunRidges


@dataclass(frozen=True, slots=True)
class Panel:
    """A part of the figure, from 0 to 1 each way."""

    x: tuple[float, float]
    y: tuple[float, float]


def panels(count: int, *, gap: float = 0.06, head: float = 0.09) -> list[Panel]:
    """Return panels in rows of two, with room above each for its caption."""
    columns = min(count, 2)
    rows = (count + 1) // 2
    width = (1 - gap * (columns - 1)) / columns
    height = 1 / rows
    found: list[Panel] = []
    for number in range(count):
        row, column = divmod(number, columns)
        left, top = column * (width + gap), 1 - row * height
        found.append(Panel((left, left + width), (top - height, top - head * height)))
    return found


def quantity_heading(quantity: Quantity) -> tuple[str, str]:
    """Return a title and a subtitle on how a quantity is distributed over the layers."""
    title = quantity.title[0].upper() + quantity.title[1:]
    return f"{plain(title)} {plain(quantity.symbol)}", f"over the layers, {plain(quantity.formula)}"


def quantity_axis(quantity: Quantity) -> str:
    """Return the title of an axis that a quantity stands on."""
    return f"{plain(quantity.title)} {plain(quantity.symbol)}"


def caption(figure: go.Figure, run: RunRidges, panel: Panel, theme: Theme) -> None:
    """Write above a panel which run it shows, and how much of it."""
    color = theme.runs[run.color].line
    name = plain(run.label, 56)
    figure.add_annotation(
        text=f'<span style="color:{color}">■</span> <b>{name}</b>'
        f'<br><span style="color:{theme.muted};font-size:12px">{extent(run)}</span>',
        x=panel.x[0],
        y=panel.y[1],
        xref="paper",
        yref="paper",
        xanchor="left",
        yanchor="bottom",
        align="left",
        showarrow=False,
        font={"size": 14, "color": theme.ink},
    )


def extent(run: RunRidges) -> str:
    """Return in words how many layers and steps are drawn, and how many layers are out of view."""
    layers = "1 layer" if run.layers == 1 else f"{run.layers} layers"
    if not len(run.steps):
        return f"{layers}, no steps"
    if len(run.steps) == 1:
        said = f"{layers}, one step: {run.steps[0]}"
    else:
        said = f"{layers} at {len(run.steps)} steps from {run.steps[0]} to {run.steps[-1]}"
    outside = [
        f"{int(counts.max())} {where}"
        for counts, where in (
            (run.below, "below"),
            (run.above, "above"),
            (run.nonfinite, "not finite"),
        )
        if counts.any()
    ]
    return f"{said} · out of view: up to {', '.join(outside)}" if outside else said
