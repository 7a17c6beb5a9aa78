"""From a selection to the ridgelines page: data, sentences, the table of one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, cast

import numpy as np

from trustlens import element_bins as bins
from trustlens.analysis.run import Run
from trustlens.figures.ridgelines.data import RidgelineData, RunRidges, ridgeline_data
from trustlens.schema import QUANTITIES

RIDGES = 100
"""Steps that are drawn of each run; more would stand closer than their lines are wide."""


def view(runs: Sequence[Run], quantity: str, scale: str, reach: str) -> RidgelineData:
    """Return the ridgelines of the runs as they are on disk now; remembered until they change."""
    versions = tuple(run.version for run in runs)
    return _view(tuple(runs), versions, quantity, scale, reach)


@lru_cache(maxsize=16)
def _view(
    runs: tuple[Run, ...], _versions: tuple[str, ...], quantity: str, scale: str, reach: str
) -> RidgelineData:
    return ridgeline_data(
        runs,
        quantity,
        ridges=RIDGES,
        scale=cast("Literal['auto', 'log', 'linear']", scale),
        view=cast("Literal['robust', 'full']", reach),
    )


def drawn_steps(data: RidgelineData) -> list[int]:
    """Return the steps at which any of the runs has a ridge, ascending."""
    return sorted({int(step) for run in data.runs for step in run.steps})


def nearest(steps: Sequence[int] | np.ndarray[Any, Any], step: int) -> int | None:
    """Return the one of the steps that is nearest, the earlier of two; None of none."""
    return min((int(s) for s in steps), key=lambda s: (abs(s - step), s), default=None)


def picture_in_words(data: RidgelineData, run: RunRidges) -> str:
    """Return what the ridgelines of a run show, for those who do not see them."""
    if run.note:
        return f"{run.label}: {run.note}"
    name = f"{data.quantity.title} {data.quantity.symbol}"
    steps = f"{len(run.steps)} step{'' if len(run.steps) == 1 else 's'}"
    if run.width > 1:
        steps = f"{len(run.steps)} stretches of {run.width:,} steps, the means of each"
    middles = [_middle(data, run, row) for row in (0, len(run.steps) - 1)]
    first, last = ("none" if m is None else readable(m) for m in middles)
    text = (
        f"{run.label}: ridgelines of the {name} over {run.layers} layers at {steps}, from "
        f"{run.steps[0]} to {run.steps[-1]}. The middle of the layers lies at {first} at first and "
        f"at {last} at last."
    )
    return " ".join([text, out_of_view(data, run)]).strip()


def out_of_view(data: RidgelineData, run: RunRidges) -> str:
    """Return a sentence on the layers that the picture does not hold; empty if there are none."""
    parts: list[str] = []
    low, high = (readable(edge) for edge in data.edges[[0, -1]])
    for counts, where in (
        (run.below, f"below {low}"),
        (run.above, f"above {high}"),
        (run.nonfinite, "not finite"),
    ):
        if counts.any():
            first, last = run.steps[np.flatnonzero(counts)[[0, -1]]]
            when = f"at step {first}" if first == last else f"between steps {first} and {last}"
            parts.append(f"up to {int(counts.max())} {where} ({when})")
    return f"Layers out of view: {'; '.join(parts)}." if parts else ""


def _middle(data: RidgelineData, run: RunRidges, row: int) -> float | None:
    """Return the value that half of the layers in view lie below."""
    total = np.cumsum(run.heights[row], dtype=np.float64)
    if total[-1] <= 0:
        return None
    return float(data.edges[int(np.searchsorted(total, total[-1] / 2)) + 1])


def values_at(run: Run, step: int | None, quantity: str) -> dict[str, float | None]:
    """Return the quantity of each layer at a recorded step; None where it is not finite."""
    values = run.matrix(quantity, steps=[] if step is None else [step])
    if values.empty:
        return dict.fromkeys(run.layer_names)
    row = values.iloc[0]
    return {str(name): float(value) if np.isfinite(value) else None for name, value in row.items()}


def step_rows(columns: Sequence[Mapping[str, float | None]]) -> list[dict[str, Any]]:
    """Return one row a layer with its value in each run (``value0``, ``value1``) and their ratio.

    A layer that only one run has is a row too. What is not known is None.
    """
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys(name for column in columns for name in column):
        values = [column.get(name) for column in columns]
        row: dict[str, Any] = {f"value{i}": value for i, value in enumerate(values)}
        if len(values) == 2:
            first, second = values
            row["ratio"] = second / first if first and second is not None else None
        rows.append({"layer": name, **row})
    return rows


def step_in_words(
    name: str, step: int | None, values: Mapping[str, float | None], quantity: str
) -> str:
    """Return one run's numbers at a step as a sentence."""
    if step is None:
        return f"{name}: no step recorded."
    known = np.array([value for value in values.values() if value is not None])
    symbol = QUANTITIES[quantity].symbol
    if not known.size:
        return f"{name}, step {step}: no finite {symbol} in any of {len(values)} layers."
    low, middle, high = (readable(f(known)) for f in (np.min, np.median, np.max))
    missing = len(values) - known.size
    rest = f"; {missing} without a finite value" if missing else ""
    return (
        f"{name}, step {step}: median {symbol} {middle}, from {low} to {high} "
        f"over {known.size} layer{'' if known.size == 1 else 's'}{rest}."
    )


def readable(value: float) -> str:
    """Return a number with three significant digits."""
    return bins.number(float(f"{value:.3g}"))
