"""Score the values of a signal against earlier values of the same layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np

from trustlens.diagnosis.episodes import Array

MIN_PAST: Final = 32  # recorded steps before the first score
ALARM_SPREADS: Final = 10.0  # alarm threshold, in spreads above the median
MIN_SPREAD: Final = 0.1  # minimum spread of the natural logarithm: about 10 % of the value
FALL: Final = np.log(1000.0)  # alarm threshold, in natural logarithm below the 90th percentile
GROWTH: Final = np.log(6.0)  # alarm threshold, in natural logarithm above the 10th percentile
SAMPLES: Final = 128  # maximum number of rows from which a baseline is computed
Z90: Final = 1.2816  # the 90th percentile of the standard normal distribution

Judge: TypeAlias = Callable[[Array, Array, Array, Array], tuple[Array, Array]]
"""A function that scores values. It takes the values, (rows, layers), and the 10th, 50th and 90th
percentile of a baseline, each (layers,). It returns the scores, (rows, layers), which are 1 at the
alarm threshold, and the percentile with which the values were compared, (layers,)."""


def above(x: Array, _low: Array, middle: Array, high: Array) -> tuple[Array, Array]:
    """Score how far values are above the median, relative to the spread; see `Judge`."""
    return (x - middle) / (ALARM_SPREADS * np.maximum((high - middle) / Z90, MIN_SPREAD)), middle


def below(x: Array, _low: Array, _middle: Array, high: Array) -> tuple[Array, Array]:
    """Score how far values are below the 90th percentile; see `Judge`."""
    # Bounded, since the logarithm of an update of 0 is −inf.
    return np.minimum(high - x, 3 * FALL) / FALL, high


def grown(x: Array, low: Array, _middle: Array, _high: Array) -> tuple[Array, Array]:
    """Score how far values are above the 10th percentile; see `Judge`."""
    return (x - low) / GROWTH, low


def judge_by_past(values: Array, judge: Judge) -> tuple[Array, Array]:
    """Score each row against the rows before it.

    The baseline is computed again each time the number of earlier rows has grown by a twentieth.

    Parameters
    ----------
    values : float64 (rows, layers)
        Logarithms of a signal.
    judge : callable
        The function that computes the scores, such as :func:`above`.

    Returns
    -------
    score : float64 (rows, layers)
        1 at the alarm threshold; 0 or NaN without a baseline.
    usual : float64 (rows, layers)
        The percentile of the baseline with which each value was compared; NaN without a baseline.
    """
    past = np.where(np.isfinite(values), values, np.nan)
    score = np.zeros(values.shape)
    usual = np.full(values.shape, np.nan)
    baseline = np.full((3, values.shape[1]), np.nan)
    start = MIN_PAST
    while start < len(values):
        stop = max(start + 1, start + start // 20)
        rows = np.unique(np.linspace(start // 2, start - 1, SAMPLES).astype(int))
        frozen = (score[start - 1] >= 1) & ~np.isnan(baseline[1])
        baseline = np.where(frozen, baseline, _quantiles(past[rows]))
        block = slice(start, stop)
        score[block], usual[block] = judge(values[block], *baseline)
        past[block][score[block] >= 1] = np.nan
        start = stop
    return score, usual


def _quantiles(values: Array) -> Array:
    """Return the 10th, 50th and 90th percentile of each column, shape (3, columns).

    They are NaN for a column of which more than half is NaN.
    """
    ordered = np.sort(values, axis=0)  # NaN are sorted last
    count = (~np.isnan(ordered)).sum(axis=0)
    places = np.rint(np.array([[0.1], [0.5], [0.9]]) * (count - 1)).astype(int)
    points = np.take_along_axis(ordered, np.maximum(places, 0), axis=0)
    points[:, 2 * count < len(values)] = np.nan
    return points
