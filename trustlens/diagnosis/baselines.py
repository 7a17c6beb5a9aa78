"""Score each row of a signal against the past of its layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np

from trustlens.diagnosis.episodes import Array

MIN_PAST: Final = 32  # recorded steps before the first score
ALARM_SPREADS: Final = 10.0  # above the baseline
MIN_SPREAD: Final = 0.1  # of the natural logarithm: about 10 %
FALL: Final = np.log(1000.0)  # below the 90 % point
GROWTH: Final = np.log(6.0)  # above the 10 % point
SAMPLES: Final = 128  # rows of the window that a baseline is computed from
Z90: Final = 1.2816  # the 90 % point of the normal distribution

Judge: TypeAlias = Callable[[Array, Array, Array, Array], tuple[Array, Array]]
"""Takes values (rows, layers) and the 10, 50 and 90 % points of a baseline, each (layers,). Returns
the score, 1 at the alarm threshold, and the point from which it was measured."""


def above(x: Array, _low: Array, middle: Array, high: Array) -> tuple[Array, Array]:
    """Score how far values are above the median, in spreads."""
    return (x - middle) / (ALARM_SPREADS * np.maximum((high - middle) / Z90, MIN_SPREAD)), middle


def below(x: Array, _low: Array, _middle: Array, high: Array) -> tuple[Array, Array]:
    """Score how far values are below the 90 % point."""
    # Bounded, since the logarithm of an update of 0 is −inf.
    return np.minimum(high - x, 3 * FALL) / FALL, high


def grown(x: Array, low: Array, _middle: Array, _high: Array) -> tuple[Array, Array]:
    """Score how far values are above the 10 % point."""
    return (x - low) / GROWTH, low


def judge_by_past(values: Array, judge: Judge) -> tuple[Array, Array]:
    """Score each row against the rows before it.

    The baseline is recomputed each time the past has grown by a twentieth.

    Parameters
    ----------
    values : float64 (rows, layers)
        Logarithms of a signal.
    judge : callable
        Computes the score, such as :func:`above`.

    Returns
    -------
    score : float64 (rows, layers)
        1 at the alarm threshold; 0 or NaN without a baseline.
    usual : float64 (rows, layers)
        The point of the baseline that each value was measured from; NaN without a baseline.
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
    """Return the 10, 50 and 90 % points of each column, (3, columns); NaN if half is missing."""
    ordered = np.sort(values, axis=0)  # NaN are sorted last
    count = (~np.isnan(ordered)).sum(axis=0)
    places = np.rint(np.array([[0.1], [0.5], [0.9]]) * (count - 1)).astype(int)
    points = np.take_along_axis(ordered, np.maximum(places, 0), axis=0)
    points[:, 2 * count < len(values)] = np.nan
    return points
