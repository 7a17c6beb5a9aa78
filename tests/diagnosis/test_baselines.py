"""Baselines compared with quantiles computed separately for every row."""

from __future__ import annotations

import numpy as np
import pytest

from trustlens.diagnosis import baselines
from trustlens.diagnosis.baselines import MIN_PAST, above, below, grown, judge_by_past

ROWS, LAYERS = 120, 7


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    rng = np.random.default_rng(3)
    made = rng.normal(0, 1, (ROWS, LAYERS))
    made[rng.random(made.shape) < 0.05] = np.nan
    made[:, 6] = np.nan
    made[50:, 6] = 1.0  # missing in more than half of the first windows
    return made


def window(end: int) -> slice:
    """Return the window of the baseline that is in use at row `end`."""
    start = MIN_PAST
    while max(start + 1, start + start // 20) <= end:
        start = max(start + 1, start + start // 20)
    return slice(start // 2, start)


def test_rows_without_enough_past_have_no_score(values: np.ndarray) -> None:
    score, usual = judge_by_past(values, above)
    assert (score[:MIN_PAST] == 0).all()
    assert np.isnan(usual[:MIN_PAST]).all()


def test_the_usual_value_is_the_median_of_the_second_half_of_the_past(values: np.ndarray) -> None:
    _, usual = judge_by_past(values, above)
    for row in range(MIN_PAST, ROWS):
        for layer in range(LAYERS):
            past = np.sort(values[window(row), layer])
            known = past[~np.isnan(past)]
            if 2 * len(known) < len(past):
                assert np.isnan(usual[row, layer])
            else:  # one of the two middle values
                middle = known[[(len(known) - 1) // 2, len(known) // 2]]
                assert usual[row, layer] in middle


def test_each_judge_returns_1_at_its_alarm_threshold() -> None:
    low, middle, high = np.array([0.0]), np.array([1.0]), np.array([1.0 + 1.2816 * 0.5])
    spread = 0.5
    score, usual = above(middle + 10 * spread, low, middle, high)
    np.testing.assert_allclose([score[0], usual[0]], [1, middle[0]])
    score, usual = above(middle + 10 * 0.1, low, middle, middle)  # the minimum spread
    np.testing.assert_allclose(score, [1])
    score, usual = below(high - np.log(1000), low, middle, high)
    np.testing.assert_allclose([score[0], usual[0]], [1, high[0]])
    assert below(np.array([-np.inf]), low, middle, high)[0] == 3
    score, usual = grown(low + np.log(6), low, middle, high)
    np.testing.assert_allclose([score[0], usual[0]], [1, low[0]])


def test_an_alarm_does_not_become_the_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.zeros((400, 2))
    values[100:, 0] = 5.0  # 50 spreads, for three quarters of the run
    score, usual = judge_by_past(values, above)
    assert (score[100:, 0] == 5).all()
    assert (usual[100:, 0] == 0).all()
    assert (score[:, 1] == 0).all()
    monkeypatch.setattr(baselines, "ALARM_SPREADS", 1e9)  # without an alarm it does
    assert judge_by_past(values, above)[1][-1, 0] == 5
