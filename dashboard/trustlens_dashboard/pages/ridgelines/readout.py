"""Data of the ridgelines page: the ridgelines, and a table and a summary of one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast

import numpy as np

from trustlens.analysis.run import Run
from trustlens.figures.axis import readable
from trustlens.figures.ridgelines.data import RidgelineData, ridgeline_data
from trustlens.figures.words import counted
from trustlens.schema import QUANTITIES
from trustlens_dashboard.library import Snapshot

RIDGES = 100
"""Maximum number of ridges per run. More ridges would be closer together than a line is wide."""


def cached_ridgelines(
    snapshot: Snapshot, runs: Sequence[Run], quantity: str, scale: str, view: str
) -> RidgelineData:
    """Return the ridgelines of the runs, cached until one of the runs changes."""
    compute = partial(
        ridgeline_data,
        runs,
        quantity,
        ridges=RIDGES,
        scale=cast("Literal['auto', 'log', 'linear']", scale),
        view=cast("Literal['robust', 'full']", view),
    )
    versions = tuple(snapshot.state(run).version for run in runs)
    name = ("ridgelines", quantity, scale, view)
    return snapshot.results.get(name, tuple(runs), versions, compute, _size)


def _size(data: RidgelineData) -> int:
    return sum(run.heights.nbytes + 4 * run.steps.nbytes for run in data.runs)


def drawn_steps(data: RidgelineData) -> list[int]:
    """Return the steps at which at least one run has a ridge, ascending."""
    return sorted({int(step) for run in data.runs for step in run.steps})


def nearest(steps: Sequence[int] | np.ndarray[Any, Any], step: int) -> int | None:
    """Return the element of ``steps`` that is nearest to ``step``; None if ``steps`` is empty.

    If two elements are equally near, return the earlier one.
    """
    return min((int(s) for s in steps), key=lambda s: (abs(s - step), s), default=None)


def values_at(run: Run, step: int | None, quantity: str) -> dict[str, float | None]:
    """Return the quantity of each layer at a recorded step, by the name of the layer.

    A value is None if it is not finite. All values are None if the run has no row at the step.
    """
    values = run.matrix(quantity, steps=[] if step is None else [step])
    if values.empty:
        return dict.fromkeys(run.layer_names)
    row = values.iloc[0]
    return {str(name): float(value) if np.isfinite(value) else None for name, value in row.items()}


def step_rows(columns: Sequence[Mapping[str, float | None]]) -> list[dict[str, Any]]:
    """Return one row per layer with its value in each run (``value0``, ``value1``).

    With two runs, ``ratio`` is value1 / value0. Layers of only one run have a row too. Missing
    values and ratios are None.
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


def step_summary(
    name: str, step: int | None, values: Mapping[str, float | None], quantity: str
) -> str:
    """Return a sentence with the median and the range of one run's values at a step."""
    if step is None:
        return f"{name}: no step recorded."
    known = np.array([value for value in values.values() if value is not None])
    symbol = QUANTITIES[quantity].symbol
    if not known.size:
        return f"{name}, step {step}: {symbol} is not finite in any of {len(values)} layers."
    low, middle, high = (readable(f(known)) for f in (np.min, np.median, np.max))
    missing = len(values) - known.size
    rest = f"; {missing} without a finite value" if missing else ""
    return (
        f"{name}, step {step}: median {symbol} {middle}, from {low} to {high} "
        f"over {counted(known.size, 'layer')}{rest}."
    )
