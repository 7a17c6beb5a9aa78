"""What figures read from a run: one quantity at a bounded number of steps."""

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
    spans = [span for run in runs if (span := run.files.span("layers")) is not None]
    if not spans:
        return 0, 0
    return min(first for first, _ in spans), max(last for _, last in spans)


def read_sample(run: Run, quantity: str, count: int, span: tuple[int, int]) -> LayerValues:
    """Read one quantity at ``count`` steps at most, evenly from a first step to a last one.

    Those recorded nearest to an even division, the run's first and last among them; of a long run
    the means of as many stretches, or of half as many at the least.

    Raises
    ------
    UsageError
        Fewer than one step.
    """
    if count < 1:
        raise UsageError(f"{count} steps cannot be shown; show at least 1")
    if not run.is_long:
        return read_values(run, quantity, nearest_steps(run.recorded_steps(), *span, count))
    read = run.overview(quantity, count, steps=span, extremes=False)
    some = read.rows.any(axis=1)
    nonfinite = (read.finite < read.rows)[some]
    return LayerValues(read.steps[some], read.mean[some], nonfinite, read.width)


def read_values(run: Run, quantity: str, steps: NDArray[np.int64]) -> LayerValues:
    """Read a quantity at the given steps; the layers are the run's, in their order.

    A value that is missing and one that is NaN look alike in a DataFrame. The count of
    elements that are not finite tells them apart, but for a layer that lacks the quantity even
    where all its elements were finite: its optimizer does not have it.
    """
    names = list(dict.fromkeys((quantity, "nonfinite")))
    frame = run.layers(names, steps=steps)
    numbers, row = np.unique(frame["step"].to_numpy(), return_inverse=True)
    column = frame["layer"].cat.codes.to_numpy()
    shape = (len(numbers), len(run.layer_names))
    values, counts = np.full(shape, np.nan), np.zeros(shape)
    values[row, column] = frame[quantity].to_numpy(np.float64)
    counts[row, column] = frame["nonfinite"].to_numpy(np.float64)
    known = np.zeros(shape, np.bool_)
    known[row, column] = True
    missing = known & np.isnan(values)
    lacking = (missing & (counts == 0)).any(axis=0)
    nonfinite = np.isinf(values) | (missing & (counts > 0) & ~lacking)
    return LayerValues(numbers, np.where(np.isinf(values), np.nan, values), nonfinite)


def nearest_steps(
    recorded: NDArray[np.int64], first: int, last: int, count: int
) -> NDArray[np.int64]:
    """Return the recorded steps nearest to ``count`` even ones from ``first`` to ``last``.

    The first and the last recorded step are always among them where the range covers them. Runs
    that recorded the same steps get the same ones.

    Returns
    -------
    int64 array of shape (at most ``count``,)
        Ascending, each once; empty if nothing is recorded.
    """
    if count < 1:
        raise UsageError(f"{count} steps cannot be shown; show at least 1")
    if not len(recorded):
        return recorded
    wanted = np.linspace(first, last, count) if count > 1 else np.array([last])
    after = np.searchsorted(recorded, wanted).clip(1, max(len(recorded) - 1, 1))
    before = recorded[after - 1]
    after = recorded[np.minimum(after, len(recorded) - 1)]
    return np.unique(np.where(wanted - before <= after - wanted, before, after))


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
