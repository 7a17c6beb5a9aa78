"""Texts about ridgelines: captions, summaries, and layers out of view."""

from __future__ import annotations

from typing import Final

import numpy as np

from trustlens.figures.axis import readable
from trustlens.figures.ridgelines.data import RidgelineData, RunRidges, Side
from trustlens.figures.words import counted

_SIDES: Final[dict[Side, str]] = {"below": "below", "above": "above", "nonfinite": "not finite"}


def extent(run: RunRidges) -> str:
    """Return HTML with the numbers of drawn layers, drawn steps and layers out of view."""
    layers = counted(run.layers, "layer")
    if not len(run.steps):
        return f"{layers}, no steps"
    if len(run.steps) == 1:
        drawn = f"{layers}, one step: {run.steps[0]}"
    else:
        drawn = f"{layers} at {len(run.steps)} steps from {run.steps[0]} to {run.steps[-1]}"
    outside = [f"{int(counts.max())} {_SIDES[side]}" for side, counts in run.out_of_view().items()]
    return f"{drawn}<br>out of view: up to {', '.join(outside)}" if outside else drawn


def note(run: RunRidges) -> str:
    """Return the text to show after a run's name: how many layers and steps the run has."""
    layers = counted(run.layers, "layer")
    if run.width > 1:
        return f"{layers} · each ridge shows means of {_grouped(run.width)} steps"
    return f"{layers} · {_grouped(int(run.steps[-1]))} steps" if len(run.steps) else layers


def summary(data: RidgelineData, run: RunRidges) -> str:
    """Return a description of the ridgelines of a run for screen readers."""
    if run.note:
        return f"{run.label}: {run.note}"
    name = f"{data.quantity.title} {data.quantity.symbol}"
    steps = counted(len(run.steps), "step")
    if run.width > 1:
        steps = f"{len(run.steps)} means of {run.width:,} steps"
    medians = [_median(data, run, row) for row in (0, len(run.steps) - 1)]
    first, last = ("none" if m is None else readable(m) for m in medians)
    text = (
        f"{run.label}: ridgelines of the {name} over {run.layers} layers at {steps}, from "
        f"{run.steps[0]} to {run.steps[-1]}. The median of the layers is {first} at the first step "
        f"and {last} at the last."
    )
    return " ".join([text, out_of_view(data, run)]).strip()


def out_of_view(data: RidgelineData, run: RunRidges) -> str:
    """Return a sentence about the layers out of view; empty if there are none."""
    parts: list[str] = []
    for mark in data.marks(run):
        first, last = mark.steps[0], mark.steps[-1]
        when = f"at step {first}" if first == last else f"between steps {first} and {last}"
        parts.append(f"up to {int(mark.counts.max())} {mark.place} ({when})")
    return f"Layers out of view: {'; '.join(parts)}." if parts else ""


def _median(data: RidgelineData, run: RunRidges, row: int) -> float | None:
    """Return the upper edge of the bucket that contains the median of the layers in view.

    None if no layer is in view.
    """
    total = np.cumsum(run.heights[row], dtype=np.float64)
    if total[-1] <= 0:
        return None
    return float(data.edges[int(np.searchsorted(total, total[-1] / 2)) + 1])


def _grouped(count: int) -> str:
    return f"{count:,}".replace(",", "\u202f")
