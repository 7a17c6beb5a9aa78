"""One quantity of a run at a bounded number of steps, whether the run is short or long."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trustlens.errors import UsageError
from trustlens.store.downsampled import Downsampled


@dataclass(frozen=True, slots=True)
class Sample:
    """One quantity of n layers, at b steps or in b buckets of steps.

    Attributes
    ----------
    steps : int64 (b,)
        The steps, or the first step of each bucket.
    width : int
        Steps of a bucket; 1 for single steps.
    values : float64 (b, n)
        The values as recorded, which may be NaN or infinite; of a bucket, the mean of its finite
        values. NaN where there is no value.
    low, high : float64 (b, n)
        The smallest and the largest finite value of each bucket, or its mean where these are not
        known; ``values`` itself for single steps.
    rows : bool (b, n)
        Whether the layer has a row there.
    nonfinite : bool (b, n)
        Whether a value was recorded that is NaN or infinite.
    exact : bool
        Whether these are single steps as recorded, and not buckets.
    """

    steps: NDArray[np.int64]
    width: int
    values: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    rows: NDArray[np.bool_]
    nonfinite: NDArray[np.bool_]
    exact: bool

    def largest(self) -> NDArray[np.float64]:
        """Return the values, or the largest one of each bucket, (b, n).

        A bucket with a value that is not finite is infinite.
        """
        return self.values if self.exact else np.where(self.nonfinite, np.inf, self.high)

    def series(self, layer: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return steps and values of one layer, as a curve that hides no extreme.

        Single steps are returned as they are. A bucket becomes up to three points: its smallest
        value at its first step, its largest in the middle, and NaN at its last step if it has
        a value that is not finite.

        Parameters
        ----------
        layer : int
            A column of ``values``.

        Returns
        -------
        steps : int64 (points,)
        values : float64 (points,)
        """
        there = self.rows[:, layer]
        if self.exact:
            return self.steps[there], self.values[there, layer]
        offsets = np.array([0, self.width // 2, self.width - 1])
        nan = np.full(len(self.steps), np.nan)
        values = np.stack([self.low[:, layer], self.high[:, layer], nan], axis=1)
        drawn = np.stack([there, there, self.nonfinite[:, layer]], axis=1)
        return (self.steps[:, None] + offsets)[drawn], values[drawn]


def exact_sample(
    steps: NDArray[np.int64],
    values: NDArray[np.float64],
    rows: NDArray[np.bool_],
    nonfinite_elements: NDArray[np.float64],
) -> Sample:
    """Return single steps as a sample.

    A value that is missing and one that is NaN look alike here. The count of elements that are not
    finite, float64 (b, n), tells them apart, except for a layer that lacks the quantity even
    where all its elements were finite: its optimizer does not have the quantity.
    """
    missing = rows & np.isnan(values)
    lacking = (missing & (nonfinite_elements == 0)).any(axis=0)
    nonfinite = np.isinf(values) | (missing & (nonfinite_elements > 0) & ~lacking)
    return Sample(steps, 1, values, values, values, rows, nonfinite, exact=True)


def bucket_sample(read: Downsampled, kept: NDArray[np.bool_]) -> Sample:
    """Return those buckets of a downsampled quantity that are kept, bool (buckets,)."""
    mean = read.mean[kept]
    return Sample(
        read.steps[kept],
        read.width,
        mean,
        mean if read.low is None else read.low[kept],
        mean if read.high is None else read.high[kept],
        read.rows[kept] > 0,
        (read.finite < read.rows)[kept],
        exact=False,
    )


def nearest_steps(
    recorded: NDArray[np.int64], first: int, last: int, count: int
) -> NDArray[np.int64]:
    """Return the recorded steps nearest to ``count`` evenly spaced ones from ``first`` to ``last``.

    The first and the last recorded step are always among them where the range covers them. Runs
    that recorded the same steps get the same ones.

    Returns
    -------
    int64 array of shape (at most ``count``,)
        Ascending, each once; empty if nothing is recorded.

    Raises
    ------
    UsageError
        Fewer than one step.
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
