"""Test moving averages against pandas, and against their definition if values are missing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from trustlens.errors import UsageError
from trustlens.figures import smoothing, smoothing_data
from trustlens.figures._smoothing import example_series


def test_averages_agree_with_pandas() -> None:
    data = smoothing_data(betas=(0.0, 0.5, 0.9, 0.99))
    series = pd.Series(example_series())
    for beta, average, debiased in zip(data.betas, data.averages, data.debiased, strict=True):
        weighted = series.ewm(alpha=1 - beta, adjust=True).mean()
        np.testing.assert_allclose(debiased, weighted, rtol=1e-9)
        from_zero = pd.concat([pd.Series([0.0]), series]).ewm(alpha=1 - beta, adjust=False).mean()
        np.testing.assert_allclose(average, from_zero.to_numpy()[1:], rtol=1e-9, atol=1e-15)


def test_the_first_debiased_value_is_that_of_the_series() -> None:
    data = smoothing_data([5.0, 1.0], (0.9, 0.999))
    np.testing.assert_allclose(data.debiased[:, 0], 5)
    np.testing.assert_allclose(data.averages[:, 0], [0.5, 0.005])


def test_values_that_are_not_finite_are_skipped() -> None:
    data = smoothing_data([np.nan, 1.0, np.inf, 2.0], (0.5,))
    np.testing.assert_allclose(data.averages[0], [0, 0.5, 0.5, 1.25])
    np.testing.assert_allclose(data.debiased[0], [np.nan, 1, 1, 1.25 / 0.75])


def test_the_given_series_is_not_modified() -> None:
    series = np.array([1.0, np.inf])
    smoothing_data(series)
    assert series[1] == np.inf


@pytest.mark.parametrize(("option", "panels"), [(None, 2), (True, 1), (False, 1)])
def test_with_and_without_debiasing(option: bool | None, panels: int) -> None:
    figure = smoothing(betas=(0.9, 0.99), debias=option)
    assert len(figure.data) == panels * 3
    assert [trace.name for trace in figure.data[:3]] == ["series x", "β = 0.9", "β = 0.99"]
    first = figure.data[2].y[0]
    assert abs(first) < 0.02 if option in (None, False) else abs(first) > 0.5
    if panels == 2:
        assert figure.layout.yaxis2.matches == "y"


@pytest.mark.parametrize("series", [[], [np.nan, np.nan]])
def test_a_series_without_finite_values_has_a_message(series: list[float]) -> None:
    assert "no finite value" in smoothing(series).layout.annotations[0].text


@pytest.mark.parametrize(("series", "betas"), [(None, (1.0,)), (None, (-1,)), ([[1.0]], (0.9,))])
def test_invalid_input_raises(series: object, betas: tuple[float, ...]) -> None:
    with pytest.raises(UsageError):
        smoothing_data(series, betas)  # type: ignore[arg-type]
