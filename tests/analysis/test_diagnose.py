"""Simulated faults are found in the right layer and step; healthy runs have no findings."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trustlens.analysis.diagnose import COLUMNS, diagnose, verdict
from trustlens.analysis.discovery import open_run
from trustlens.diagnosis.detector import find
from trustlens.diagnosis.signals import LayerRows

STEPS, LAYERS, FAULT, CULPRIT = 400, 12, 251, 5  # the faulty layer, and its first faulty step

Values = dict[str, np.ndarray]
Make = Callable[..., Path]


def rates(schedule: str, steps: int) -> np.ndarray:
    t = np.arange(1, steps + 1) / steps
    warm = np.minimum(1.0, t / 0.1)
    return (
        1e-3
        * {
            "constant": np.ones(steps),
            "warm-up": warm,
            "warm-up and cosine": warm * (0.5 + 0.5 * np.cos(np.pi * t)),
            "step decay": 0.1 ** np.floor(3 * t),
            "restarts": 0.5 + 0.4999 * np.cos(2 * np.pi * (5 * t % 1)),
        }[schedule]
    )


def healthy(
    steps: int = STEPS, layers: int = LAYERS, *, schedule: str = "constant", noise: float = 0.1,
    lamb: bool = False, seed: int = 0,
) -> Values:  # fmt: skip
    """Simulate training: directions with trend and noise; the weights accumulate the updates."""
    rng = np.random.default_rng(seed)
    rate = rates(schedule, steps)[:, None] + np.zeros(layers)
    level = np.exp(rng.uniform(-1, 3, layers))
    trend = np.arange(1, steps + 1)[:, None] ** rng.uniform(-0.8, 0.1, layers)
    direction = level * trend * np.exp(rng.normal(0, noise, (steps, layers)))
    weight = np.empty((steps, layers))
    # A third of the layers start at zero, as biases do.
    now = np.where(np.arange(layers) % 3 == 0, 0.0, np.exp(rng.uniform(-2, 3, layers)))
    coherence = rng.uniform(0, 1, layers)  # share of the updates that is parallel to the weights
    update = np.empty((steps, layers))
    for t in range(steps):
        weight[t] = now
        ratio = np.where(now > 0, now / direction[t], 1.0) if lamb else 1.0
        update[t] = rate[t] * direction[t] * ratio
        now = np.hypot(now, update[t]) + coherence * update[t] * (now < 20)
    return {
        "weight_norm": weight,
        "direction_norm": direction,
        "update_norm": update,
        "grad_norm": direction * 0.1,
        "learning_rate": rate,
        "nonfinite": np.zeros((steps, layers)),
    }


def found(make: Make, values: Values, **options: Any) -> Any:
    steps, layers = values["weight_norm"].shape
    run = open_run(make("run", steps=steps, layers=layers, values=values, **options))
    return diagnose(run), run


@pytest.mark.parametrize("lamb", [False, True])
@pytest.mark.parametrize(
    "schedule", ["constant", "warm-up", "warm-up and cosine", "step decay", "restarts"]
)
@pytest.mark.parametrize("noise", [0.02, 0.5])
def test_healthy_runs_have_no_findings(
    synthetic_run: Make, schedule: str, noise: float, lamb: bool
) -> None:
    values = healthy(1000, 60, schedule=schedule, noise=noise, lamb=lamb, seed=1)
    findings, run = found(synthetic_run, values)
    assert list(findings.columns) == list(COLUMNS)
    assert findings.empty, findings.to_string()
    assert verdict(findings, run) == "no anomalies"


def test_random_walks_have_no_findings(synthetic_run: Make) -> None:
    findings = diagnose(open_run(synthetic_run("walk", steps=400, layers=50)))
    assert findings.empty, findings.to_string()


def spoil_update(values: Values, neighbours: bool) -> None:
    """Make updates of one layer 20 times too long; from the next step on, others even longer."""
    values["update_norm"][FAULT - 1 :, CULPRIT] *= 20
    if neighbours:
        others = np.arange(LAYERS) != CULPRIT
        values["update_norm"][FAULT:, others] *= 500


@pytest.mark.parametrize("neighbours", [False, True])
@pytest.mark.parametrize("schedule", ["constant", "warm-up and cosine", "step decay"])
def test_long_updates(synthetic_run: Make, schedule: str, neighbours: bool) -> None:
    values = healthy(schedule=schedule)
    spoil_update(values, neighbours)
    findings, run = found(synthetic_run, values)
    first = findings.iloc[0]
    assert (first["step"], first["layer"]) == (FAULT, run.layer_names[CULPRIT])
    assert first["kind"] == "exploding"
    assert first["score"] > 1
    assert "update ratio" in first["evidence"]
    assert len(findings) == (LAYERS if neighbours else 1)
    assert verdict(findings, run).startswith(f"{first['layer']} exploding from step {FAULT}")


def test_a_fault_in_lamb_whose_update_ratio_is_constant(synthetic_run: Make) -> None:
    values = healthy(lamb=True)
    values["direction_norm"][FAULT - 1 :, CULPRIT] *= 10
    findings, run = found(synthetic_run, values)
    assert findings["layer"].tolist() == [run.layer_names[CULPRIT]]
    assert findings["step"].tolist() == [FAULT]
    assert "direction ratio" in findings["evidence"][0]


def test_a_jump_of_one_groups_learning_rate(synthetic_run: Make) -> None:
    values = healthy(schedule="warm-up")
    for name in ("learning_rate", "update_norm"):
        values[name][FAULT - 1 :, CULPRIT] *= 50
    findings, run = found(synthetic_run, values)
    assert findings["layer"].tolist() == [run.layer_names[CULPRIT]]
    assert findings["step"].tolist() == [FAULT]


def test_exponential_growth(synthetic_run: Make) -> None:
    values = healthy(lamb=True)
    values["weight_norm"][:, CULPRIT] = np.exp(0.05 * np.arange(STEPS))
    values["update_norm"][:, CULPRIT] = 0.05 * values["weight_norm"][:, CULPRIT]
    values["direction_norm"][:, CULPRIT] = values["weight_norm"][:, CULPRIT]
    findings, run = found(synthetic_run, values)
    assert findings["layer"].tolist() == [run.layer_names[CULPRIT]]
    assert "weight norm" in findings["evidence"][0]
    assert f"at step {STEPS}" in findings["evidence"][0]  # where it was worst
    assert findings["step"][0] < 100  # half of the alarm's level is √6 = e^0.9


def test_not_finite_names_the_layer_where_it_began(synthetic_run: Make) -> None:
    values = healthy()
    values["nonfinite"][FAULT - 1, CULPRIT] = 3
    values["nonfinite"][FAULT:] = 100
    for name in ("weight_norm", "update_norm", "direction_norm", "grad_norm"):
        values[name][FAULT:] = np.nan
    findings, run = found(synthetic_run, values)
    assert findings["layer"][0] == run.layer_names[CULPRIT]
    assert findings["step"].tolist() == [FAULT] + [FAULT + 1] * (LAYERS - 1)
    assert set(findings["kind"]) == {"not finite"}
    assert np.isinf(findings["score"]).all()
    assert "3 elements" in findings["evidence"][0]


def test_broken_weights_come_before_the_gradients_they_broke(synthetic_run: Make) -> None:
    values = healthy()
    values["nonfinite"][FAULT - 1 :] = 100
    values["update_norm"][FAULT - 1 :] = np.nan
    values["weight_norm"][FAULT - 1, CULPRIT] = np.inf
    findings, run = found(synthetic_run, values)
    assert findings["layer"][0] == run.layer_names[CULPRIT]
    assert set(findings["step"]) == {FAULT}


def test_explosion_that_ends_in_nan_is_blamed_on_its_onset(synthetic_run: Make) -> None:
    values = healthy()
    spoil_update(values, neighbours=False)
    values["nonfinite"][FAULT + 20 :] = 7
    findings, run = found(synthetic_run, values)
    first = findings.iloc[0]
    assert (first["step"], first["layer"]) == (FAULT, run.layer_names[CULPRIT])
    assert np.isinf(first["score"])
    assert f"not finite from step {FAULT + 21}" in first["evidence"]


@pytest.mark.parametrize(("factor", "kind"), [(0.0, "frozen"), (1e-5, "vanishing")])
def test_a_layer_that_stops(synthetic_run: Make, factor: float, kind: str) -> None:
    values = healthy()
    values["update_norm"][FAULT - 1 :, CULPRIT] *= factor
    findings, run = found(synthetic_run, values)
    assert findings["layer"].tolist() == [run.layer_names[CULPRIT]]
    assert findings["kind"].tolist() == [kind]
    assert findings["step"].tolist() == [FAULT]


def test_a_layer_whose_gradient_stays_0(synthetic_run: Make) -> None:
    values = healthy()
    values["grad_norm"][20:, CULPRIT] = 0.0  # earlier than the first baseline
    values["grad_norm"][:, 2] *= np.arange(STEPS) % 40 == 0  # a layer that is rarely used
    values["grad_norm"][100:105, 3] = 0.0  # too short to be a fault
    findings, run = found(synthetic_run, values)
    assert findings["layer"].tolist() == [run.layer_names[CULPRIT]]
    assert findings["kind"].tolist() == ["frozen"]
    assert findings["step"].tolist() == [21]
    assert "its gradient is 0" in findings["evidence"][0]


def test_a_layer_frozen_on_purpose_is_no_fault(synthetic_run: Make) -> None:
    values = healthy()
    for name in ("learning_rate", "update_norm"):
        values[name][FAULT - 1 :, CULPRIT] = 0.0
    values["grad_norm"][FAULT - 1 :, CULPRIT] = 0.0
    values["update_norm"][100:105, 2] = 0.0  # too short to be a fault
    findings, _ = found(synthetic_run, values)
    assert findings.empty, findings.to_string()


def test_the_evidence_says_that_an_alarm_is_over_and_the_worst_is_first(
    synthetic_run: Make,
) -> None:
    values = healthy()
    values["update_norm"][99, 2] *= 30
    values["update_norm"][FAULT - 1 :, CULPRIT] *= 3000
    findings, run = found(synthetic_run, values)
    assert findings["layer"].tolist() == [run.layer_names[CULPRIT], run.layer_names[2]]
    assert findings["step"].tolist() == [FAULT, 100]
    assert "over after step 100" in findings["evidence"][1]
    assert "over" not in findings["evidence"][0]


def test_baseline_is_frozen_during_an_alarm(synthetic_run: Make) -> None:
    values = healthy(2000, LAYERS)
    values["update_norm"][FAULT - 1 :, CULPRIT] *= (
        300  # long enough to become the baseline, if it were not frozen
    )
    findings, _ = found(synthetic_run, values)
    assert findings["step"].tolist() == [FAULT]
    assert "over" not in findings["evidence"][0]


@pytest.mark.parametrize("steps", [0, 1, 2, 17])
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_small_runs(synthetic_run: Make, steps: int, layers: int) -> None:
    run = open_run(synthetic_run("small", steps=steps, layers=layers))
    findings = diagnose(run)
    assert findings.empty
    assert findings.dtypes["step"] == np.int64
    assert verdict(findings, run) == ("no anomalies" if steps else "no steps")


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_runs_with_a_single_value(synthetic_run: Make, value: float) -> None:
    values: dict[str, np.ndarray | None] = dict.fromkeys(
        ("weight_norm", "update_norm", "direction_norm", "grad_norm"), np.full((40, 3), value)
    )
    run = open_run(synthetic_run("same", steps=40, layers=3, values=values))
    findings = diagnose(run)
    assert findings["kind"].tolist() == ([] if value == 0 else ["not finite"] * 3)
    assert findings["step"].tolist() == ([] if value == 0 else [1, 1, 1])


@pytest.mark.parametrize("factor", [1, 20])
def test_quantities_that_the_optimizer_does_not_have(synthetic_run: Make, factor: float) -> None:
    values: dict[str, Any] = {**healthy(), "direction_norm": None, "learning_rate": None}
    values["update_norm"][FAULT - 1 :, CULPRIT] *= factor
    findings, _ = found(synthetic_run, values)
    assert findings["step"].tolist() == ([] if factor == 1 else [FAULT])


def test_three_hundred_layers_take_well_under_a_second() -> None:
    values = healthy(2000, 300)
    values["update_norm"][1500:, 7] *= 100
    rows = LayerRows(np.arange(1, 2001), [f"layer{i}" for i in range(300)], values)
    begin = time.process_time()
    findings = find(rows)
    assert time.process_time() - begin < 2.0  # measured: 0.3 s
    assert [finding.layer for finding in findings] == ["layer7"]
