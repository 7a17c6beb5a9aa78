"""Test axes: positions, ranges, edges, ticks and formatted numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trustlens.errors import UsageError
from trustlens.figures import axis


def test_positions_on_a_log_axis() -> None:
    found = axis.on_axis(np.array([0.01, 1, 100, 0, -5, np.nan, np.inf]), "log")
    np.testing.assert_allclose(found, [-2, 0, 2, -np.inf, -np.inf, np.nan, np.inf])
    np.testing.assert_array_equal(axis.on_axis(np.array([-5.0, 0]), "linear"), [-5, 0])


@pytest.mark.parametrize("scale", ["log", "linear"])
def test_the_robust_range_is_six_interquartile_ranges_beyond_the_quartiles(
    scale: axis.Scale,
) -> None:
    values = np.append(np.linspace(1, 2, 101), [1e6, 1e-6])
    positions = np.log10(values) if scale == "log" else values
    quartiles = np.percentile(positions, [25, 75])
    fence = quartiles[1] + 6 * (quartiles[1] - quartiles[0])
    low, high = axis.robust_range(values, scale) or (0, 0)
    assert high == pytest.approx(10**fence if scale == "log" else fence)
    assert low > 0 if scale == "log" else low == 1e-6  # clipped to the data
    assert axis.full_range(values, scale) == pytest.approx((1e-6, 1e6))


def test_the_range_of_mostly_equal_values_is_not_a_point() -> None:
    values = np.array([1.0] * 80 + [1.5] * 19 + [1e9])
    assert axis.robust_range(values, "linear") == pytest.approx((1, 4.5))


@pytest.mark.parametrize("values", [[], [np.nan], [np.inf, -np.inf]])
def test_without_values_there_is_no_range(values: list[float]) -> None:
    assert axis.robust_range(np.array(values, float), "linear") is None
    assert axis.robust_range(np.array([*values, 0.0, -1.0]), "log") is None
    assert axis.full_range(np.array([*values, 0.0, -1.0]), "log") is None


def test_axis_edges_are_evenly_spaced_on_the_axis() -> None:
    np.testing.assert_allclose(axis.axis_edges(0.01, 100, 4, "log"), [0.01, 0.1, 1, 10, 100])
    np.testing.assert_allclose(axis.axis_edges(0, 1, 2, "linear", margin=0.5), [-0.5, 0.5, 1.5])


@pytest.mark.parametrize("scale", ["log", "linear"])
@pytest.mark.parametrize("value", [1.0, 1e-30, 3e30])
def test_a_single_value_is_in_the_middle_of_its_axis(value: float, scale: axis.Scale) -> None:
    edges = axis.axis_edges(value, value, 10, scale)
    assert (np.diff(edges) > 0).all()
    assert edges[0] < value < edges[-1]
    assert edges[5] == pytest.approx(value)


def test_an_axis_for_zero_only() -> None:
    np.testing.assert_allclose(axis.axis_edges(0, 0, 2, "linear"), [-0.5, 0, 0.5])


@pytest.mark.parametrize(
    ("low", "high", "scale"),
    [(0.0, 1.0, "log"), (2.0, 1.0, "linear"), (math.nan, 1.0, "linear"), (1.0, math.inf, "log")],
)
def test_an_invalid_range_raises(low: float, high: float, scale: axis.Scale) -> None:
    with pytest.raises(UsageError, match="axis cannot"):
        axis.axis_edges(low, high, 4, scale)


@given(st.floats(1e-30, 1e30), st.floats(1.0001, 1e20), st.sampled_from(["log", "linear"]))
def test_ticks_are_within_the_range_and_few(low: float, factor: float, scale: axis.Scale) -> None:
    found = axis.ticks(low, low * factor, scale)
    values = [value for value, _ in found]
    assert 1 <= len(found) <= 10
    assert values == sorted(values)
    room = 1e-6 * low * factor
    assert all(low - room <= value <= low * factor + room for value in values)
    assert len({text for _, text in found}) == len(found)


def test_ticks_of_a_narrow_range_have_distinct_texts() -> None:
    found = axis.ticks(0.03125, 0.03125 * 1.0001, "log")
    assert [text for _, text in found][:3] == ["0.03125", "0.0312505", "0.031251"]


def test_ticks_of_a_log_axis_are_round_numbers() -> None:
    assert [text for _, text in axis.ticks(0.004, 20, "log")] == ["0.01", "0.1", "1", "10"]
    assert [text for _, text in axis.ticks(0.5, 8, "log")] == ["0.5", "1", "2", "5"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01, "0.01"), (-2.5, "-2.5"), (1234, "1234"), (20_000, "20k"), (1.5e6, "1.5M"),
     (1e-7, "10⁻⁷"), (-1e15, "-10¹⁵"), (3e12, "3·10¹²"), (0.1 + 0.2, "0.3"), (math.nan, "nan")],
)  # fmt: skip
def test_numbers_are_formatted_readably(value: float, text: str) -> None:
    assert axis.number(value) == text
