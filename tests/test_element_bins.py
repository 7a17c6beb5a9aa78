"""Buckets: against struct, brute force, and the definition of each."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trustlens import element_bins as bins
from trustlens.errors import UsageError


def bucket_by_struct(value: float) -> int:
    """The first 11 bits of a big-endian float32, by the standard library."""
    return int.from_bytes(struct.pack(">f", value), "big") >> 21


@given(st.floats(width=32))
def test_an_element_lies_in_the_bucket_of_its_first_bits(value: float) -> None:
    assert bins.element_buckets(np.array([value]))[0] == bucket_by_struct(value)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=40))
def test_counts_by_value_agree_with_comparing_each_value_with_the_edges(values: list[float]):
    counts, nonfinite = bins.by_value(bins.element_counts(np.array(values, np.float32)))
    edges = bins.element_edges()
    expected = np.zeros(len(edges) - 1, int)
    for value in values:
        if -(2.0**-128) < value <= 0:  # as good as 0: told from it by no bucket
            expected[1020] += 1
        elif value < 0:  # towards −∞ a bucket holds its lower edge's magnitude, not its upper's
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


def test_what_is_not_finite_is_counted_and_not_lost() -> None:
    counts = bins.element_counts(np.array([np.inf, -np.inf, np.nan, 1e300, 0.0, -0.0, 2.0]))
    ordered, nonfinite = bins.by_value(counts)
    assert nonfinite == 4
    assert ordered.sum() == 3
    assert ordered[1020] == 2


def test_merging_is_the_histogram_of_all_elements_together() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(scale=10.0**k, size=200).astype(np.float32) for k in range(-3, 3)]
    merged = bins.merge(bins.element_counts(part) for part in parts)
    assert merged == bins.element_counts(np.concatenate(parts))
    assert list(merged) == sorted(merged)
    assert bins.merge([]) == {}


def test_the_density_of_a_log_uniform_sample_is_flat_and_counts_every_magnitude() -> None:
    # 2^U with U uniform has the same density in each doubling; half-octave counts would zigzag.
    powers = (np.arange(200_000) + 0.5) / 200_000 * 6 - 3
    values = 2.0**powers * np.where(np.arange(200_000) % 2, 1, -1)
    edges, density = bins.densities(bins.element_counts(values))
    inside = density[(edges[:-1] >= 2.0**-3) & (edges[1:] <= 2.0**3)]
    np.testing.assert_allclose(inside, 200_000 / 6, rtol=1e-3)
    assert (density * np.diff(np.log2(edges))).sum() == pytest.approx(200_000)


def test_positions_on_a_log_axis() -> None:
    found = bins.on_axis(np.array([0.01, 1, 100, 0, -5, np.nan, np.inf]), "log")
    np.testing.assert_allclose(found, [-2, 0, 2, -np.inf, -np.inf, np.nan, np.inf])
    np.testing.assert_array_equal(bins.on_axis(np.array([-5.0, 0]), "linear"), [-5, 0])


@pytest.mark.parametrize("scale", ["log", "linear"])
def test_the_robust_range_is_six_quartile_distances_beyond_them(scale: bins.Scale) -> None:
    values = np.append(np.linspace(1, 2, 101), [1e6, 1e-6])
    axis = np.log10(values) if scale == "log" else values
    quartiles = np.percentile(axis, [25, 75])
    fence = quartiles[1] + 6 * (quartiles[1] - quartiles[0])
    low, high = bins.robust_range(values, scale) or (0, 0)
    assert high == pytest.approx(10**fence if scale == "log" else fence)
    assert low > 0 if scale == "log" else low == 1e-6  # clipped to the data
    assert bins.full_range(values, scale) == pytest.approx((1e-6, 1e6))


def test_the_range_of_mostly_equal_values_is_not_a_point() -> None:
    values = np.array([1.0] * 80 + [1.5] * 19 + [1e9])
    assert bins.robust_range(values, "linear") == pytest.approx((1, 4.5))


@pytest.mark.parametrize("values", [[], [np.nan], [np.inf, -np.inf]])
def test_there_is_no_range_without_values(values: list[float]) -> None:
    assert bins.robust_range(np.array(values, float), "linear") is None
    assert bins.robust_range(np.array([*values, 0.0, -1.0]), "log") is None
    assert bins.full_range(np.array([*values, 0.0, -1.0]), "log") is None


def test_axis_edges_are_even_on_their_axis() -> None:
    np.testing.assert_allclose(bins.axis_edges(0.01, 100, 4, "log"), [0.01, 0.1, 1, 10, 100])
    np.testing.assert_allclose(bins.axis_edges(0, 1, 2, "linear", margin=0.5), [-0.5, 0.5, 1.5])


@pytest.mark.parametrize("scale", ["log", "linear"])
@pytest.mark.parametrize("value", [1.0, 1e-30, 3e30])
def test_a_single_value_gets_an_axis_with_it_in_the_middle(value: float, scale: bins.Scale) -> None:
    edges = bins.axis_edges(value, value, 10, scale)
    assert (np.diff(edges) > 0).all()
    assert edges[0] < value < edges[-1]
    assert edges[5] == pytest.approx(value)


def test_an_axis_at_zero_alone() -> None:
    np.testing.assert_allclose(bins.axis_edges(0, 0, 2, "linear"), [-0.5, 0, 0.5])


@pytest.mark.parametrize(
    ("low", "high", "scale"),
    [(0.0, 1.0, "log"), (2.0, 1.0, "linear"), (math.nan, 1.0, "linear"), (1.0, math.inf, "log")],
)
def test_a_range_that_cannot_be_drawn_is_refused(
    low: float, high: float, scale: bins.Scale
) -> None:
    with pytest.raises(UsageError, match="axis cannot"):
        bins.axis_edges(low, high, 4, scale)


@given(st.floats(1e-30, 1e30), st.floats(1.0001, 1e20), st.sampled_from(["log", "linear"]))
def test_ticks_lie_in_the_range_and_are_few(low: float, factor: float, scale: bins.Scale) -> None:
    found = bins.ticks(low, low * factor, scale)
    values = [value for value, _ in found]
    assert 1 <= len(found) <= 10
    assert values == sorted(values)
    room = 1e-6 * low * factor
    assert all(low - room <= value <= low * factor + room for value in values)
    assert len({text for _, text in found}) == len(found)


def test_ticks_of_a_narrow_range_are_told_apart() -> None:
    found = bins.ticks(0.03125, 0.03125 * 1.0001, "log")
    assert [text for _, text in found][:3] == ["0.03125", "0.0312505", "0.031251"]


def test_ticks_of_a_log_axis_are_human() -> None:
    assert [text for _, text in bins.ticks(0.004, 20, "log")] == ["0.01", "0.1", "1", "10"]
    assert [text for _, text in bins.ticks(0.5, 8, "log")] == ["0.5", "1", "2", "5"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01, "0.01"), (-2.5, "-2.5"), (1234, "1234"), (20_000, "20k"), (1.5e6, "1.5M"),
     (1e-7, "10⁻⁷"), (-1e15, "-10¹⁵"), (3e12, "3·10¹²"), (0.1 + 0.2, "0.3"), (math.nan, "nan")],
)  # fmt: skip
def test_numbers_read_as_written_by_hand(value: float, text: str) -> None:
    assert bins.number(value) == text
