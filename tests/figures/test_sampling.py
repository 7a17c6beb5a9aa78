"""Reading a bounded number of steps, and telling what is missing from what is not finite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trustlens.analysis.discovery import open_run
from trustlens.errors import UsageError
from trustlens.figures.sampling import nearest_steps, read_values


@given(
    st.sets(st.integers(1, 3000), min_size=1, max_size=200),
    st.integers(2, 60),
    st.integers(0, 500),
)
def test_each_step_is_the_recorded_one_nearest_to_an_even_one(
    recorded: set[int], count: int, later: int
) -> None:
    steps = np.array(sorted(recorded), np.int64)
    first, last = int(steps[0]), int(steps[-1]) + later
    found = nearest_steps(steps, first, last, count)
    expected: set[int] = set()
    for wanted in np.linspace(first, last, count):
        expected.add(min(steps.tolist(), key=lambda step: (abs(step - wanted), step)))
    assert found.tolist() == sorted(expected)
    assert {first, int(steps[-1])} <= expected or later


def test_all_steps_are_shown_where_they_are_few() -> None:
    steps = np.arange(30, 300, 30)
    np.testing.assert_array_equal(nearest_steps(steps, 30, 270, 500), steps)
    assert nearest_steps(steps, 30, 270, 1).tolist() == [270]
    assert nearest_steps(np.array([7]), 7, 7, 5).tolist() == [7]
    assert nearest_steps(np.array([], np.int64), 0, 0, 5).tolist() == []
    with pytest.raises(UsageError):
        nearest_steps(steps, 30, 270, 0)


def test_missing_values_and_not_finite_ones_are_told_apart(
    synthetic_run: Callable[..., Path],
) -> None:
    momentum = np.ones((4, 3))
    momentum[:, 1] = np.nan  # this layer's optimizer has no momentum
    momentum[2:, 2] = np.nan  # this one's turned NaN
    momentum[3, 0] = np.inf
    nonfinite = np.zeros((4, 3))
    nonfinite[2:, 1:] = 5
    path = synthetic_run(layers=3, steps=4, values={
        "momentum_norm": momentum, "nonfinite": nonfinite, "surprise": None})  # fmt: skip
    run = open_run(path)
    read = read_values(run, "momentum_norm", run.recorded_steps())
    expected = [[False] * 3, [False] * 3, [False, False, True], [True, False, True]]
    assert read.nonfinite.tolist() == expected
    assert (
        np.isnan(read.values).tolist()
        == np.isnan(np.where(momentum == np.inf, np.nan, momentum)).tolist()
    )
    assert not read_values(run, "surprise", run.recorded_steps()).nonfinite.any()
    assert read_values(run, "nonfinite", run.recorded_steps()).values.sum() == 20
