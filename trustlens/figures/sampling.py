"""Read a quantity for a figure at a bounded number of steps; choose a scale; downsample curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trustlens.analysis.run import Run
from trustlens.errors import UsageError
from trustlens.figures.axis import Scale, on_axis, parse_scale
from trustlens.schema import Quantity


@dataclass(frozen=True, slots=True)
class LayerValues:
    """One quantity of one run, steps × layers.

    Attributes
    ----------
    steps : int64 array of shape (steps,)
    values : float64 array of shape (steps, layers)
        NaN if there is no finite value.
    nonfinite : bool array of shape (steps, layers)
        Whether a value was recorded that is infinite or NaN. False if no value was recorded.
    width : int
        1 if each value is that of a single step. If values are means of buckets of steps, the
        number of steps of each bucket; ``steps`` then has the first step of each bucket.
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    nonfinite: NDArray[np.bool_]
    width: int = 1


def run_list(runs: Run | Sequence[Run]) -> list[Run]:
    """Return one or several runs as a list.

    Raises
    ------
    UsageError
        If the sequence is empty.
    """
    chosen = [runs] if isinstance(runs, Run) else list(runs)
    if not chosen:
        raise UsageError("no run was given; pass a run or a list of runs")
    return chosen


def span_of(runs: Sequence[Run]) -> tuple[int, int]:
    """Return the first and the last recorded step of all runs; (0, 0) if there is none."""
    spans = [span for run in runs if (span := run.span("layers")) is not None]
    if not spans:
        return 0, 0
    return min(first for first, _ in spans), max(last for _, last in spans)


def read_sample(run: Run, quantity: str, count: int, span: tuple[int, int]) -> LayerValues:
    """Read one quantity at up to ``count`` steps from ``span[0]`` to ``span[1]``.

    The recorded steps nearest to evenly spaced steps are read, including the run's first and last.
    A long run is instead averaged over buckets of steps: at most ``count`` buckets, and at least
    half as many.

    Raises
    ------
    UsageError
        If ``count`` is less than 1.
    """
    if count < 1:
        raise UsageError(f"{count} steps cannot be shown; show at least 1")
    read = run.sample([quantity], count, steps=span, extremes=False)[quantity]
    values = np.where(np.isinf(read.values), np.nan, read.values)
    return LayerValues(read.steps, values, read.nonfinite, read.width)


def choose_scale(scale: str, quantity: Quantity, values: Sequence[NDArray[np.float64]]) -> Scale:
    """Return the scale to use; ``"auto"`` is the quantity's preferred scale.

    With ``"auto"`` the scale is linear if there are finite values but none above 0, because a log
    axis could not show them.
    """

    def auto() -> Scale:
        on_log = any(np.isfinite(on_axis(part, "log")).any() for part in values)
        any_finite = any(np.isfinite(part).any() for part in values)
        return "log" if quantity.scale == "log" and (on_log or not any_finite) else "linear"

    return parse_scale(scale, auto)


def why_empty(run: Run, read: LayerValues, quantity: Quantity) -> str:
    """Return a sentence that says why there is nothing to draw; empty if there are values."""
    if not run.layer_names:
        return "This run has no layers."
    if not len(read.steps):
        return "No step has been recorded yet."
    if np.isfinite(read.values).any():
        return ""
    if read.nonfinite.any():
        return f"No {quantity.title} is finite: all are NaN or infinite."
    return f"No {quantity.title} was recorded: {run.family} does not have it."


def downsample_indices(values: NDArray[np.float64], points: int) -> NDArray[np.intp]:
    """Return the indices of about ``points`` values, including the extremes.

    The series is divided into ``points // 3`` intervals of equal length. The result has three
    values of each interval: the lowest, the highest and the first that is not finite. The first and
    the last value of the series are always included.

    Returns
    -------
    intp array
        Ascending and unique; all indices if there are at most ``points`` values.
    """
    count = len(values)
    if count <= max(points, 3):
        return np.arange(count)
    length = -(-count // max(points // 3, 1))
    padded = np.full(-(-count // length) * length, np.nan)
    padded[:count] = values
    rows = padded.reshape(-1, length)
    finite = np.isfinite(rows)
    lowest = np.where(finite, rows, np.inf).argmin(axis=1)
    highest = np.where(finite, rows, -np.inf).argmax(axis=1)
    broken = (~finite).argmax(axis=1)
    start = np.arange(len(rows)) * length
    kept = np.concatenate([[0, count - 1], start + lowest, start + highest, start + broken])
    return np.unique(kept[kept < count])
