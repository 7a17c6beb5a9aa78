"""Samples of a run: single steps if it is short, buckets of steps if it is long."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import trustlens
from tests.support.runs import synthetic_values
from trustlens.analysis import tables
from trustlens.analysis.sampling import nearest_steps
from trustlens.errors import UsageError

STEPS, LAYERS = 90, 3


@pytest.fixture(scope="module")
def values() -> dict[str, np.ndarray]:
    made = synthetic_values(STEPS, LAYERS)
    made["grad_norm"][10, 1] = np.inf
    made["grad_norm"][20, 2] = np.nan
    made["nonfinite"][20, 2] = 3
    return made


@pytest.fixture
def run(synthetic_run: Callable[..., Path], values: dict[str, np.ndarray]) -> trustlens.Run:
    return trustlens.open_run(synthetic_run(steps=STEPS, layers=LAYERS, values=values))


@pytest.fixture
def long_run(run: trustlens.Run, monkeypatch: pytest.MonkeyPatch) -> trustlens.Run:
    monkeypatch.setattr(tables, "LONG", 0)
    return run


def test_every_step_of_a_short_run(run: trustlens.Run, values: dict[str, np.ndarray]) -> None:
    read = run.sample(["grad_norm", "weight_norm"], 5, thin=False)
    for name, sample in read.items():
        assert sample.exact
        assert sample.width == 1
        assert sample.steps.tolist() == list(range(1, STEPS + 1))
        np.testing.assert_array_equal(sample.values, values[name].astype(np.float32))
        np.testing.assert_array_equal(sample.largest(), sample.values)
        assert sample.rows.all()
    bad = np.argwhere(read["grad_norm"].nonfinite).tolist()
    assert bad == [[10, 1], [20, 2]]
    assert not read["weight_norm"].nonfinite.any()


def test_a_short_run_is_thinned_to_recorded_steps(
    run: trustlens.Run, values: dict[str, np.ndarray]
) -> None:
    sample = run.sample(["grad_norm"], 4)["grad_norm"]
    assert len(sample.steps) == 4
    assert sample.steps[[0, -1]].tolist() == [1, STEPS]
    np.testing.assert_array_equal(
        sample.values, values["grad_norm"][sample.steps - 1].astype(np.float32)
    )
    part = run.sample(["grad_norm"], 100, steps=(30, 40))["grad_norm"]
    assert part.steps.tolist() == list(range(30, 41))


@pytest.mark.parametrize("thin", [True, False])
def test_layers_are_columns_in_the_requested_order(
    run: trustlens.Run, values: dict[str, np.ndarray], thin: bool
) -> None:
    names = [run.layer_names[2], run.layer_names[0], run.layer_names[2]]
    sample = run.sample(["weight_norm"], STEPS, layers=names, thin=thin)["weight_norm"]
    np.testing.assert_array_equal(sample.values, values["weight_norm"][:, [2, 0]].astype("f4"))
    with pytest.raises(UsageError, match="'nope' is not a layer"):
        run.sample(["weight_norm"], 5, layers=["nope"], thin=thin)


def test_a_long_run_has_the_buckets_of_downsample(long_run: trustlens.Run) -> None:
    names = ["grad_norm", "weight_norm", "update_ratio"]
    for name, sample in long_run.sample(names, 10).items():
        read = long_run.downsample(name, 10)
        assert not sample.exact
        assert sample.width == read.width > 1
        np.testing.assert_array_equal(sample.steps, read.steps)
        np.testing.assert_array_equal(sample.values, read.mean)
        np.testing.assert_array_equal(sample.low, read.mean if read.low is None else read.low)
        np.testing.assert_array_equal(sample.nonfinite, read.finite < read.rows)
        largest = read.mean if read.high is None else read.high
        broken = read.finite < read.rows
        np.testing.assert_array_equal(sample.largest(), np.where(broken, np.inf, largest))


def test_a_series_keeps_extremes_and_marks_not_finite_values(
    long_run: trustlens.Run,
) -> None:
    sample = long_run.sample(["grad_norm"], 10)["grad_norm"]
    steps, values = sample.series(1)
    bucket = (11 - 1) // sample.width  # step 11 is infinite
    assert steps[np.isnan(values)].tolist() == [(bucket + 1) * sample.width]
    assert (np.diff(steps) > 0).all()
    assert values[0] == sample.low[0, 1]
    assert values[1] == sample.high[0, 1]


def test_a_series_of_single_steps_has_the_recorded_values(
    run: trustlens.Run, values: dict[str, np.ndarray]
) -> None:
    steps, series = run.sample(["grad_norm"], 5, thin=False)["grad_norm"].series(2)
    assert steps.tolist() == list(range(1, STEPS + 1))
    np.testing.assert_array_equal(series, values["grad_norm"][:, 2].astype(np.float32))


def test_quantities_that_the_optimizer_lacks_do_not_count_as_not_finite(
    synthetic_run: Callable[..., Path],
) -> None:
    nonfinite = np.zeros((30, 2))
    nonfinite[5:, 0] = 1
    made = {"momentum_norm": None, "nonfinite": nonfinite}
    run = trustlens.open_run(synthetic_run(steps=30, layers=2, values=made))
    sample = run.sample(["momentum_norm"], 5, thin=False)["momentum_norm"]
    assert np.isnan(sample.values).all()
    assert not sample.nonfinite.any()


@pytest.mark.parametrize("layers", [0, 2])
def test_runs_without_a_step(synthetic_run: Callable[..., Path], layers: int) -> None:
    run = trustlens.open_run(synthetic_run(steps=0, layers=layers))
    for thin in (True, False):
        sample = run.sample(["grad_norm"], 5, thin=thin)["grad_norm"]
        assert sample.values.shape == (0, layers)
    assert run.span() is None


def test_several_quantities_have_the_same_buckets(run: trustlens.Run) -> None:
    both = run.downsample(["grad_norm", "update_ratio"], 7)
    assert list(both) == ["grad_norm", "update_ratio"]
    for name, read in both.items():
        one = run.downsample(name, 7)
        np.testing.assert_array_equal(read.mean, one.mean)
        np.testing.assert_array_equal(read.steps, one.steps)


def test_the_span_of_each_table(run: trustlens.Run) -> None:
    assert run.span() == run.span("steps") == (1, STEPS)
    assert run.span("histograms") is None
    with pytest.raises(UsageError, match="'rows' is not a table; choose one of: layers, steps"):
        run.span("rows")


@pytest.mark.parametrize(
    ("first", "last", "count", "expected"),
    [(1, 9, 3, [1, 5, 9]), (1, 9, 1, [9]), (0, 100, 2, [1, 9]), (4, 5, 50, [3, 5])],
)
def test_nearest_steps(first: int, last: int, count: int, expected: list[int]) -> None:
    recorded = np.array([1, 3, 5, 7, 9])
    assert nearest_steps(recorded, first, last, count).tolist() == expected
    assert nearest_steps(recorded[:0], first, last, count).tolist() == []
    with pytest.raises(UsageError, match="show at least 1"):
        nearest_steps(recorded, first, last, 0)
