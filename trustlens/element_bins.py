"""Element buckets: the fixed buckets of all histograms of a layer's elements.

Element buckets need no range chosen in advance. The bucket number of a float32 consists of its
sign bit, its 8 exponent bits and its first 2 mantissa bits (``bits >> 21``). This gives 2048
buckets, four per doubling. They are the same for every tensor, so that exact counts can be added
over layers, steps and ranks.
A bucket ``b < 1024`` contains values ``x ≥ 0``; bucket ``b + 1024`` contains the values ``−x``.
Buckets 1020–1023 and 2044–2047 contain the infinities and NaN. Buckets 0 and 1024 contain 0 and
magnitudes below 2⁻¹²⁸.
The four buckets of a doubling differ in width on a log axis. To draw a histogram on a log axis,
divide each count by the width of its bucket on this axis; otherwise the histogram has a sawtooth
pattern.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

ELEMENT_BUCKETS: Final = 2048
"""Number of element buckets."""

ELEMENT_SHIFT: Final = 21
"""The bucket number of a float32 is its bits shifted right by this number of bits."""

_FINITE: Final = 1020  # number of buckets for finite values of each sign
_SIGN: Final = 1024  # added to the bucket number of a negative value


def element_buckets(values: NDArray[Any]) -> NDArray[np.int16]:
    """Cast ``values`` to float32 and return each element's bucket number, in the same shape."""
    with np.errstate(over="ignore"):  # values beyond float32 become infinite
        single = np.ascontiguousarray(values, np.float32)
    return (single.view(np.uint32) >> ELEMENT_SHIFT).astype(np.int16)


def element_counts(values: NDArray[Any]) -> dict[int, int]:
    """Return a dict from bucket number, ascending, to number of elements; no empty buckets."""
    counts = np.bincount(element_buckets(values).ravel(), minlength=ELEMENT_BUCKETS)
    return {int(bucket): int(counts[bucket]) for bucket in np.flatnonzero(counts)}


def element_edges() -> NDArray[np.float64]:
    """Return the edges of the buckets of finite elements, ascending, float64 of shape (2041,).

    The first edge is −2¹²⁸, edge 1020 is 0 and the last edge is 2¹²⁸. :func:`by_value` returns the
    counts between the edges.
    """
    bits = np.arange(_FINITE, dtype=np.uint32) << np.uint32(ELEMENT_SHIFT)
    magnitudes = np.append(bits.view(np.float32).astype(np.float64), 2.0**128)
    return np.concatenate([-magnitudes[:0:-1], magnitudes])


def by_value(counts: Mapping[int, int]) -> tuple[NDArray[np.int64], int]:
    """Return an element histogram sorted by value.

    Parameters
    ----------
    counts : mapping of int to int
        Number of elements by bucket number, as :func:`element_counts` returns it.

    Returns
    -------
    counts : int64 array of shape (2040,)
        Counts between the edges of :func:`element_edges`. The bucket that starts at 0 counts −0
        too.
    nonfinite : int
        Number of infinite or NaN elements.
    """
    dense = np.zeros(ELEMENT_BUCKETS, np.int64)
    dense[list(counts)] = list(counts.values())
    positive, negative = dense[:_FINITE], dense[_SIGN : _SIGN + _FINITE]
    ordered = np.concatenate([negative[::-1], positive])
    # Count −0 with +0. Values in (−2⁻¹²⁸, 0) are in the bucket of −0, so they are moved too.
    ordered[_FINITE] += ordered[_FINITE - 1]
    ordered[_FINITE - 1] = 0
    return ordered, int(dense.sum() - ordered.sum())
