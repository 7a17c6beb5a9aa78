"""Aggregates of buckets of consecutive values: counts, minimum, maximum and sum."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trustlens.store.arrow import numbers, present


@dataclass(frozen=True, slots=True)
class Buckets:
    """Aggregates of n buckets of values; buckets can be merged without the values.

    Attributes
    ----------
    rows : int64 (n,)
        Number of values that are not null, whether finite or not.
    finite : int64 (n,)
        Number of finite values.
    low, high : float64 (n,)
        The smallest and the largest finite value; ∞ and −∞ if no value is finite.
    total : float64 (n,)
        Sum of the finite values.
    """

    rows: NDArray[np.int64]
    finite: NDArray[np.int64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    total: NDArray[np.float64]

    @property
    def nbytes(self) -> int:
        """Size of all arrays in bytes."""
        return sum(getattr(self, each.name).nbytes for each in fields(self))

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of the finite values, float64 (n,); NaN for a bucket without finite values."""
        with np.errstate(invalid="ignore"):
            return self.total / self.finite

    def at(self, where: NDArray[Any]) -> Buckets:
        """Return some of the buckets, selected by an array of indices or by a mask."""
        return Buckets(
            self.rows[where],
            self.finite[where],
            self.low[where],
            self.high[where],
            self.total[where],
        )

    def joined(self, starts: NDArray[np.intp]) -> Buckets:
        """Merge groups of consecutive buckets; ``starts`` has the first index of each group."""
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
    """Aggregate a column in buckets; ``starts`` has the index of each bucket's first row."""
    array = numbers(values)
    if values.null_count or not len(starts) or not np.isfinite(array).all():
        return bucket_per_value(values).joined(starts)
    counts = np.diff(starts, append=len(array))  # the usual case, all values finite: faster
    return Buckets(
        counts,
        counts,
        np.minimum.reduceat(array, starts).astype(np.float64),
        np.maximum.reduceat(array, starts).astype(np.float64),
        np.add.reduceat(array, starts, dtype=np.float64),
    )


def bucket_per_value(values: pa.ChunkedArray) -> Buckets:
    """Return each value of a column as a bucket of its own."""
    array, valid = numbers(values), present(values)
    finite = np.isfinite(array) & valid
    return Buckets(
        valid.astype(np.int64),
        finite.astype(np.int64),
        np.where(finite, array, np.inf).astype(np.float64),
        np.where(finite, array, -np.inf).astype(np.float64),
        np.where(finite, array, 0.0).astype(np.float64),
    )


def starts_of(*keys: NDArray[Any]) -> NDArray[np.intp]:
    """Return the indices at which a new group of equal items begins, in ascending order.

    At such an index, an item of at least one array differs from the previous item of that array.
    The first index is 0. If the arrays are empty, there are no indices.
    """
    begins = np.zeros(len(keys[0]), np.bool_)
    begins[:1] = True
    for key in keys:
        begins[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(begins)
