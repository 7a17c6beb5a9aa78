"""Reading a quantity for a figure: a bounded number of steps, the scale, why it is empty."""

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
        NaN where there is no finite value.
    nonfinite : bool array of shape (steps, layers)
        Where a value was recorded that is infinite or NaN; not where there is none.
    width : int
        1, or of how many steps, the first of which is named, each value is the mean.
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    nonfinite: NDArray[np.bool_]
    width: int = 1


def run_list(runs: Run | Sequence[Run]) -> list[Run]:
    """Return the runs as a list, whether one was given or several."""
    chosen = [runs] if isinstance(runs, Run) else list(runs)
    if not chosen:
        raise UsageError("no run was given; give a run or a list of runs")
    return chosen


def span_of(runs: Sequence[Run]) -> tuple[int, int]:
    """Return the first and the last recorded step of all the runs; 0 and 0 if there is none."""
    spans = [span for run in runs if (span := run.span("layers")) is not None]
    if not spans:
        return 0, 0
    return min(first for first, _ in spans), max(last for _, last in spans)


def read_sample(run: Run, quantity: str, count: int, span: tuple[int, int]) -> LayerValues:
    """Read one quantity at up to ``count`` steps, evenly spaced from a first step to a last one.

    The nearest recorded steps are read, the run's first and last among them; of a long run the
    means of as many stretches of steps, or of at least half as many.

    Raises
    ------
    UsageError
        Fewer than one step.
    """
    if count < 1:
        raise UsageError(f"{count} steps cannot be shown; show at least 1")
    read = run.sample([quantity], count, steps=span, extremes=False)[quantity]
    values = np.where(np.isinf(read.values), np.nan, read.values)
    return LayerValues(read.steps, values, read.nonfinite, read.width)


def choose_scale(scale: str, quantity: Quantity, values: Sequence[NDArray[np.float64]]) -> Scale:
    """Return the scale to draw on: as asked for, else the one the quantity reads best on.

    A log axis is chosen only where there is a value above 0 to stand on it.
    """

    def auto() -> Scale:
        on_log = any(np.isfinite(on_axis(part, "log")).any() for part in values)
        some = any(np.isfinite(part).any() for part in values)
        return "log" if quantity.scale == "log" and (on_log or not some) else "linear"

    return parse_scale(scale, auto)


def why_empty(run: Run, read: LayerValues, quantity: Quantity) -> str:
    """Return a sentence on why there is nothing to draw, or nothing if there is something."""
    if not run.layer_names:
        return "This run has no layers."
    if not len(read.steps):
        return "No step has been recorded yet."
    if np.isfinite(read.values).any():
        return ""
    if read.nonfinite.any():
        return f"No {quantity.title} is finite: all are NaN or infinite."
    return f"No {quantity.title} was recorded: {run.family} does not have it."


def thin(values: NDArray[np.float64], points: int) -> NDArray[np.intp]:
    """Return indices of about ``points`` values that keep every extreme.

    The series is cut into ``points // 3`` stretches of equal length; each keeps its lowest and
    its highest value and its first one that is not finite. First and last value are kept.

    Returns
    -------
    intp array
        Ascending, each once; all indices where there are no more than ``points`` values.
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
