"""Some numbers as one: how many there are, the least, the greatest, and their sum.

Of rows that lie one behind the other, those of a bucket in one piece. All of it can be joined
again.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trustlens.store.arrow import numbers, present


@dataclass(frozen=True, slots=True)
class Buckets:
    """What is kept of the values in each of n buckets.

    Attributes
    ----------
    rows : int64 (n,)
        Values there are, not finite ones too; null is none.
    finite : int64 (n,)
        Those that are finite.
    low, high : float64 (n,)
        The least and the greatest finite one; ∞ and −∞ where there is none.
    total : float64 (n,)
        The sum of the finite ones.
    """

    rows: NDArray[np.int64]
    finite: NDArray[np.int64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    total: NDArray[np.float64]

    @property
    def nbytes(self) -> int:
        """The bytes of all of it."""
        return sum(getattr(self, each.name).nbytes for each in fields(self))

    @property
    def mean(self) -> NDArray[np.float64]:
        """The mean of the finite values; NaN where there is none."""
        with np.errstate(invalid="ignore"):
            return self.total / self.finite

    def at(self, where: NDArray[Any]) -> Buckets:
        """Return some of them, by their places or by a mask."""
        return Buckets(
            self.rows[where],
            self.finite[where],
            self.low[where],
            self.high[where],
            self.total[where],
        )

    def joined(self, starts: NDArray[np.intp]) -> Buckets:
        """Return what is kept of several as one; ``starts`` has the place of the first of each."""
        if not len(starts):
            return self.at(starts)
        return Buckets(
            np.add.reduceat(self.rows, starts),
            np.add.reduceat(self.finite, starts),
            np.minimum.reduceat(self.low, starts),
            np.maximum.reduceat(self.high, starts),
            np.add.reduceat(self.total, starts),
        )


def buckets_of(values: pa.ChunkedArray, starts: NDArray[np.intp]) -> Buckets:
    """Return what is kept of a column; ``starts`` has the place of the first row of each bucket."""
    given = numbers(values)
    if values.null_count or not len(starts) or not np.isfinite(given).all():
        return singles(values).joined(starts)
    counts = np.diff(starts, append=len(given))  # nearly always, and much quicker
    return Buckets(
        counts,
        counts,
        np.minimum.reduceat(given, starts).astype(np.float64),
        np.maximum.reduceat(given, starts).astype(np.float64),
        np.add.reduceat(given, starts, dtype=np.float64),
    )


def singles(values: pa.ChunkedArray) -> Buckets:
    """Return each value of a column as a bucket of its own."""
    given, there = numbers(values), present(values)
    finite = np.isfinite(given) & there
    return Buckets(
        there.astype(np.int64),
        finite.astype(np.int64),
        np.where(finite, given, np.inf).astype(np.float64),
        np.where(finite, given, -np.inf).astype(np.float64),
        np.where(finite, given, 0.0).astype(np.float64),
    )


def starts_of(*keys: NDArray[Any]) -> NDArray[np.intp]:
    """Return the places at which any of the keys is another than at the place before."""
    begins = np.zeros(len(keys[0]), np.bool_)
    begins[:1] = True
    for key in keys:
        begins[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(begins)
