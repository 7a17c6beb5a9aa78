"""Test element buckets against ``struct`` and against a comparison with every edge."""

from __future__ import annotations

import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trustlens import element_bins as bins


def bucket_by_struct(value: float) -> int:
    """Return the first 11 bits of a float32, computed by the standard library."""
    return int.from_bytes(struct.pack(">f", value), "big") >> 21


@given(st.floats(width=32))
def test_the_bucket_is_the_first_11_bits(value: float) -> None:
    assert bins.element_buckets(np.array([value]))[0] == bucket_by_struct(value)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=40))
def test_counts_by_value_agree_with_comparing_each_value_with_the_edges(values: list[float]):
    counts, nonfinite = bins.by_value(bins.element_counts(np.array(values, np.float32)))
    edges = bins.element_edges()
    expected = np.zeros(len(edges) - 1, int)
    for value in values:
        if -(2.0**-128) < value <= 0:  # counted in the bucket above 0
            expected[1020] += 1
        elif value < 0:  # a negative bucket excludes its lower edge and includes its upper one
            expected[next(i for i in range(1020) if edges[i] < value <= edges[i + 1])] += 1
        else:
            expected[next(i for i in range(1020, 2040) if edges[i] <= value < edges[i + 1])] += 1
    assert nonfinite == 0
    np.testing.assert_array_equal(counts, expected)


def test_edges_ascend_and_are_symmetric() -> None:
    edges = bins.element_edges()
    assert edges.shape == (2041,)
    assert (np.diff(edges) > 0).all()
    np.testing.assert_array_equal(edges, -edges[::-1])
    assert edges[-1] == 2.0**128
    assert {1.0, 1.25, 1.5, 1.75, 2.0, 2.0**-128} <= set(edges.tolist())


def test_infinite_and_nan_elements_are_counted_separately() -> None:
    counts = bins.element_counts(np.array([np.inf, -np.inf, np.nan, 1e300, 0.0, -0.0, 2.0]))
    ordered, nonfinite = bins.by_value(counts)
    assert nonfinite == 4
    assert ordered.sum() == 3
    assert ordered[1020] == 2
