"""One quantity of a run at a bounded number of points: single steps or buckets of steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trustlens.errors import UsageError
from trustlens.store.downsampled import Downsampled


@dataclass(frozen=True, slots=True)
class Sample:
    """One quantity of n layers at b steps, or in b buckets of steps.

    Attributes
    ----------
    steps : int64 (b,)
        The steps, or the first step of each bucket.
    width : int
        Steps per bucket; 1 for single steps.
    values : float64 (b, n)
        The values as recorded, which may be NaN or infinite; for a bucket, the mean of its finite
        values. NaN if there is no value.
    low, high : float64 (b, n)
        The smallest and the largest finite value of each bucket. If they are unknown, both are the
        mean of the bucket. For single steps, both are ``values``.
    rows : bool (b, n)
        Whether the layer has a row at this step or in this bucket.
    nonfinite : bool (b, n)
        Whether the value at this step, or at least one value in this bucket, was recorded as NaN
        or infinite.
    exact : bool
        True for single steps as recorded, False for buckets.
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
        """Return the values of single steps, or the largest value of each bucket, float64 (b, n).

        The result is infinite for a bucket in which at least one value is not finite.
        """
        return self.values if self.exact else np.where(self.nonfinite, np.inf, self.high)

    def series(self, layer: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the steps and values of one layer, for a curve that shows every extreme.

        Single steps are returned unchanged. A bucket becomes up to three points: its smallest
        value at its first step, its largest value in the middle, and NaN at its last step if it
        contains a value that is not finite.

        Parameters
        ----------
        layer : int
            Index of a column of ``values``.

        Returns
        -------
        steps : int64 (points,)
            Step of each point.
        values : float64 (points,)
            Value of each point. NaN interrupts the curve.
        """
        has_row = self.rows[:, layer]
        if self.exact:
            return self.steps[has_row], self.values[has_row, layer]
        offsets = np.array([0, self.width // 2, self.width - 1])
        nan = np.full(len(self.steps), np.nan)
        values = np.stack([self.low[:, layer], self.high[:, layer], nan], axis=1)
        drawn = np.stack([has_row, has_row, self.nonfinite[:, layer]], axis=1)
        return (self.steps[:, None] + offsets)[drawn], values[drawn]


def exact_sample(
    steps: NDArray[np.int64],
    values: NDArray[np.float64],
    rows: NDArray[np.bool_],
    nonfinite_elements: NDArray[np.float64],
) -> Sample:
    """Return a sample of single steps.

    A NaN in ``values`` is either a recorded NaN or a missing value. ``nonfinite_elements``, float64
    (b, n), is used to distinguish the two cases. It counts the elements of a layer's gradient and
    weights that are not finite. If a layer has NaN at a step where this count is 0, the optimizer
    of the layer does not have the quantity. All NaN of this layer are then missing values.
    """
    missing = rows & np.isnan(values)
    lacking = (missing & (nonfinite_elements == 0)).any(axis=0)
    nonfinite = np.isinf(values) | (missing & (nonfinite_elements > 0) & ~lacking)
    return Sample(steps, 1, values, values, values, rows, nonfinite, exact=True)


def bucket_sample(read: Downsampled, kept: NDArray[np.bool_]) -> Sample:
    """Return a sample of those buckets of ``read`` for which ``kept``, bool (buckets,), is True."""
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
    """Return the recorded steps that are nearest to ``count`` evenly spaced steps.

    The evenly spaced steps run from ``first`` to ``last``. If this range covers the first and the
    last recorded step, and ``count`` is at least 2, the result includes both of them. The result
    depends only on the arguments, so that runs which recorded the same steps can be compared.

    Returns
    -------
    int64 array of shape (at most ``count``,)
        Ascending, without duplicates; empty if ``recorded`` is empty.

    Raises
    ------
    UsageError
        If ``count`` is below 1.
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
