"""Element buckets: the fixed, mergeable histogram buckets of a layer's elements.

Element buckets need no range chosen beforehand. A float32's sign, its 8 exponent bits and the
first 2 mantissa bits, read as one number (``bits >> 21``), are its bucket: 2048 buckets, four to
each doubling, the same for every tensor, so that exact counts add over layers, steps and ranks.
Bucket ``b < 1024`` holds ``x ≥ 0``, ``b + 1024`` holds ``−x``; 1020–1023 and 2044–2047 hold the
infinities and NaN; bucket 0 (and 1024) holds 0 and magnitudes below 2⁻¹²⁸.
The four buckets of a doubling are not equally wide on a log axis: before drawing, divide each
count by the bucket's width there, or the histogram looks like a saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

ELEMENT_BUCKETS: Final = 2048
"""How many element buckets there are."""

ELEMENT_SHIFT: Final = 21
"""A float32's bucket is its bits shifted right by so many."""

_FINITE: Final = 1020  # buckets of one sign before the infinities
_SIGN: Final = 1024  # what a minus adds to the bucket


def element_buckets(values: NDArray[Any]) -> NDArray[np.int16]:
    """Return the bucket of each element, of the shape of ``values``, which are cast to float32."""
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite there
        single = np.ascontiguousarray(values, np.float32)
    return (single.view(np.uint32) >> ELEMENT_SHIFT).astype(np.int16)


def element_counts(values: NDArray[Any]) -> dict[int, int]:
    """Return how many elements lie in each bucket that holds any, in the order of the buckets."""
    counts = np.bincount(element_buckets(values).ravel(), minlength=ELEMENT_BUCKETS)
    return {int(bucket): int(counts[bucket]) for bucket in np.flatnonzero(counts)}


def element_edges() -> NDArray[np.float64]:
    """Return the edges of the finite element buckets by value, float64 of shape (2041,).

    They ascend from −2¹²⁸ through 0 (index 1020) to 2¹²⁸; :func:`by_value` gives the counts between
    them.
    """
    bits = np.arange(_FINITE, dtype=np.uint32) << np.uint32(ELEMENT_SHIFT)
    magnitudes = np.append(bits.view(np.float32).astype(np.float64), 2.0**128)
    return np.concatenate([-magnitudes[:0:-1], magnitudes])


def by_value(counts: Mapping[int, int]) -> tuple[NDArray[np.int64], int]:
    """Return an element histogram in the order of the values.

    Returns
    -------
    counts : int64 array of shape (2040,)
        Between the edges of :func:`element_edges`. Both zeros stand in the bucket above 0.
    nonfinite : int
        How many elements were infinite or NaN.
    """
    dense = np.zeros(ELEMENT_BUCKETS, np.int64)
    dense[list(counts)] = list(counts.values())
    positive, negative = dense[:_FINITE], dense[_SIGN : _SIGN + _FINITE]
    ordered = np.concatenate([negative[::-1], positive])
    # −0 and +0 are one value; what lies in (−2⁻¹²⁸, 0) is no longer told from them.
    ordered[_FINITE] += ordered[_FINITE - 1]
    ordered[_FINITE - 1] = 0
    return ordered, int(dense.sum() - ordered.sum())
