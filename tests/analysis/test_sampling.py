"""Which steps of a run are read when only some can be shown."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trustlens.analysis.sampling import nearest_steps
from trustlens.errors import UsageError


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
