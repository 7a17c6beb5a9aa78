"""Unusual layers and runs: no crash, and no invented numbers."""

from __future__ import annotations

import copy

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import trustlens
from tests.support.simulation import (
    CASES,
    TOLERANCE,
    compare,
    expected_row,
    norm,
    parameters_of,
    record_steps,
    rows_of,
    sizes_of_products,
    wide,
)
from trustlens.recording.measuring import cached_plan, measurement
from trustlens.recording.measuring.measurement import Measurement
from trustlens.recording.optimizers import direction
from trustlens.recording.statistics import SUMS
from trustlens.recording.transfer import Parcel
from trustlens.recording.writing.records import StepRecord
from trustlens.recording.writing.tables import tables


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["AdamW", "AdamW, fused", "SGD, momentum", "Lamb", "Lars"])
def test_a_layer_with_a_value_that_is_not_finite_stays_visible(name, bad, tmp_path):
    sick, healthy = parameters_of((3, 4), (5,))
    optimizer = CASES[name].make([{"params": [sick, healthy], "lr": 0.01}])
    grads = [[torch.ones(3, 4), torch.ones(5)] for _ in range(3)]
    grads[1][0][1, 2] = bad
    rows = record_steps(tmp_path / "run", optimizer, grads)
    layer = {t: rows[t, "group0.param0"] for t in (1, 2, 3)}
    other = {t: rows[t, "group0.param1"] for t in (1, 2, 3)}
    assert [layer[t]["nonfinite"] for t in (1, 2)] == [0, 1]
    assert layer[3]["nonfinite"] >= 1  # it has reached the weights
    assert [other[t]["nonfinite"] for t in (1, 2, 3)] == [0, 0, 0]
    for column in ("grad_norm", "grad_max", "direction_norm", "update_norm", "update_max"):
        assert np.isfinite(layer[1][column])
        assert layer[2][column] is not None
        if column.startswith("grad") or np.isnan(bad):
            assert not np.isfinite(layer[2][column]), column
        assert np.isfinite([other[t][column] for t in (1, 2, 3)]).all()
    assert layer[2]["weight_norm"] == pytest.approx(layer[1]["weight_norm"], rel=0.1)


@pytest.mark.parametrize("name", ["AdamW", "SGD", "SGD, momentum", "Lamb", "Lars"])
def test_a_layer_whose_gradient_is_zero(name, tmp_path):
    frozen, moving = parameters_of((3, 4), (5,))
    optimizer = CASES[name].make([{"params": [frozen, moving], "lr": 0.01, "weight_decay": 0.0}])
    rows = record_steps(tmp_path / "run", optimizer, [[torch.zeros(3, 4), torch.ones(5)]] * 2)
    for t in (1, 2):
        row = rows[t, "group0.param0"]
        assert row["trust_ratio"] == 1
        assert row["zero_grad"] == 12
        assert row["nonfinite"] == row["swallowed"] == 0
        for column in ("direction_norm", "update_norm", "grad_norm", "update_max", "grad_max"):
            assert row[column] == 0, column
        assert rows[t, "group0.param1"]["zero_grad"] == 0


@pytest.mark.parametrize("name", ["AdamW", "AdamW, fused", "SGD", "Lamb", "Lars"])
def test_updates_that_bfloat16_rounds_away(name, tmp_path):
    (p,) = parameters_of((40, 50), dtype=torch.bfloat16)
    case = CASES[name]
    optimizer = case.make([{"params": [p], "lr": 1e-3, "weight_decay": 0.0}])
    before, g = wide(p), torch.randn(40, 50).bfloat16()
    row = record_steps(tmp_path / "run", optimizer, [[g]])[1, "group0.param0"]
    delta = wide(p) - before
    assert 100 < (delta == 0).sum() < 2000
    assert row["swallowed"] == ((delta == 0) & (wide(g) != 0)).sum()
    assert row["update_norm"] == pytest.approx(norm(delta), rel=TOLERANCE)
    assert row["weight_norm"] == pytest.approx(norm(before), rel=TOLERANCE)
    assert row["grad_norm"] == pytest.approx(norm(wide(g)), rel=TOLERANCE)
    assert row["update_max"] == pytest.approx(np.abs(delta).max(), rel=TOLERANCE)
    if name not in {"SGD", "Lars"}:  # the direction of the averages as stored, in bfloat16
        state = optimizer.state[p]
        m, v = wide(state["exp_avg"]), wide(state["exp_avg_sq"])
        d = m / 0.1 / (np.sqrt(v / 0.01) + case.eps)
        assert row["direction_norm"] == pytest.approx(norm(d), rel=TOLERANCE)
        assert row["trust_ratio"] == pytest.approx(norm(before) / norm(d), rel=TOLERANCE)


@pytest.mark.parametrize("name", ["AdamW", "SGD, momentum", "Lamb", "Lars"])
def test_a_layer_without_gradient_has_a_weight_norm_and_nulls(name, tmp_path):
    used, unused = parameters_of((3, 4), (5,))
    optimizer = CASES[name].make([{"params": [used, unused], "lr": 0.01, "weight_decay": 0.1}])
    rows = record_steps(tmp_path / "run", optimizer, [[torch.ones(3, 4), None]] * 2)
    row = rows[2, "group0.param1"]
    assert row["weight_norm"] == pytest.approx(norm(wide(unused)), rel=TOLERANCE)
    assert row["update_norm"] == 0
    assert row["nonfinite"] == 0
    for column in ("trust_ratio", "direction_norm", "grad_norm", "zero_grad", "surprise"):
        assert row[column] is None, column


@pytest.mark.parametrize("name", ["AdamW", "Lamb"])
def test_a_layer_counts_its_own_steps(name, tmp_path):
    always, sometimes = parameters_of((3, 4), (5,))
    optimizer = CASES[name].make([{"params": [always, sometimes], "lr": 0.01}])
    grads = [[torch.ones(3, 4), torch.ones(5) if t % 2 == 0 else None] for t in range(4)]
    rows = record_steps(tmp_path / "run", optimizer, grads)
    factors = [[rows[t, f"group0.param{i}"]["debias1"] for t in (1, 2, 3, 4)] for i in (0, 1)]
    assert factors[0] == pytest.approx([1 / (1 - 0.9**t) for t in (1, 2, 3, 4)])
    assert factors[1][::2] == pytest.approx([1 / (1 - 0.9**t) for t in (1, 2)])
    assert factors[1][1::2] == [None, None]


def test_a_run_without_steps(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    with trustlens.record(optimizer, tmp_path / "run", model=model):
        pass
    run = trustlens.open_run(tmp_path / "run")
    assert run.last_step == 0
    assert run.layer_names == [n for n, _ in model.named_parameters()]
    assert len(run.layers()) == len(run.steps()) == len(run.metrics()) == 0


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Lamb", "Lars"])
def test_a_run_with_one_step(name, tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = CASES[name].make([{"params": list(model.parameters()), "lr": 0.01}])
    grads = [[torch.ones_like(p) for p in model.parameters()]]
    rows = record_steps(tmp_path / "run", optimizer, grads, model)
    assert rows.keys() == {(1, "weight"), (1, "bias")}
    assert len(pq.read_table(tmp_path / "run" / "steps")) == 1


def test_a_learning_rate_that_is_a_tensor(tmp_path):
    (p,) = parameters_of((3, 4))
    optimizer = torch.optim.AdamW([p], lr=torch.tensor(0.01), betas=(0.9, 0.99))
    rows = record_steps(tmp_path / "run", optimizer, [[torch.ones(3, 4)]])
    assert rows[1, "group0.param0"]["learning_rate"] == pytest.approx(0.01, rel=1e-6)


def test_a_step_with_a_closure(tmp_path):
    (p,) = parameters_of((3, 4))
    optimizer = torch.optim.SGD([p], lr=0.01)
    before = wide(p)

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    with trustlens.record(optimizer, tmp_path / "run"):
        optimizer.step(closure)
    row = rows_of(tmp_path / "run")[1, "group0.param0"]
    assert row["grad_norm"] == pytest.approx(norm(2 * before), rel=TOLERANCE)
    assert row["update_norm"] == pytest.approx(norm(0.02 * before), rel=TOLERANCE)


def test_a_restored_optimizer_keeps_its_debias_factors(tmp_path):
    (p,) = parameters_of((3, 4))
    optimizer = torch.optim.AdamW([p], lr=0.01)
    for _ in range(5):
        p.grad = torch.ones(3, 4)
        optimizer.step()
    restored = torch.optim.AdamW([p], lr=0.01)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    row = record_steps(tmp_path / "run", restored, [[torch.ones(3, 4)]])[1, "group0.param0"]
    assert row["debias1"] == pytest.approx(1 / (1 - 0.9**6))
    assert row["debias2"] == pytest.approx(1 / (1 - 0.999**6))


@pytest.mark.parametrize("name", ["AdamW", "Adam", "Adam, amsgrad", "Lamb"])
def test_step_counts_on_a_device(name, tmp_path, monkeypatch):
    """They stay tensors, since reading one would synchronize. The test uses CPU tensors."""
    for module in (direction, cached_plan, measurement):
        monkeypatch.setattr(module, "is_on_accelerator", torch.is_tensor)
    (p,) = parameters_of((30, 4))
    case = CASES[name]
    optimizer = case.make([{"params": [p], "lr": 0.01, "weight_decay": 0.1}])
    layer, seen = case.layer(), []
    optimizer.register_step_pre_hook(lambda *_: seen.append((wide(p), wide(p.grad))))
    made = record_steps(tmp_path / "run", optimizer, [[torch.randn(30, 4)] for _ in range(4)])
    seen.append((wide(p), None))
    for t, (before, g) in enumerate(seen[:-1], start=1):
        after = seen[t][0]
        stepped = layer.step(before, g, 0.01, 0.1)
        expected = expected_row(before, after, g, stepped, rate=0.01, eps=case.eps)
        products = sizes_of_products(before, after, g, stepped)
        compare(made[t, "group0.param0"], expected, products, t)


def test_the_measurement_of_a_skipped_step_is_not_written():
    """On an accelerator it is only known after measuring that the step was skipped."""
    measured = Measurement(
        layers=np.zeros(1, np.int32),
        sizes=np.ones(1),
        known=np.ones((1, len(measurement.KNOWN)), bool),
        host=np.ones((1, len(measurement.HOST_COLUMNS))),
        sums=Parcel(torch.ones(1, len(SUMS))),
        device=Parcel(torch.ones(1, len(measurement.DEVICE_COLUMNS))),
    )
    records = [
        StepRecord(t, 0, True, [measured], Parcel(torch.tensor(skipped)))
        for t, skipped in ((1, 1.0), (2, 0.0))
    ]
    made = tables(records, ["weight"])
    assert made["steps"]["skipped"].to_pylist() == [True, False]
    assert made["layers"]["step"].to_pylist() == [2]


@pytest.mark.parametrize("overflow", [0, 2])
def test_a_step_that_gradient_scaling_skipped(overflow, tmp_path):
    (p,) = parameters_of((3, 4))
    start = wide(p)
    optimizer = torch.optim.AdamW([p], lr=0.01, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with trustlens.record(optimizer, tmp_path / "run", histograms_every=1):
        for t in range(4):
            optimizer.zero_grad()
            scaler.scale((p * (float("inf") if t == overflow else 2.0)).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
    steps = pq.read_table(tmp_path / "run" / "steps").to_pylist()
    assert [row["skipped"] for row in steps] == [t == overflow for t in range(4)]
    rows = rows_of(tmp_path / "run")
    done = [t + 1 for t in range(4) if t != overflow]
    assert [t for t, _ in rows] == done
    assert rows[done[0], "group0.param0"]["weight_norm"] == pytest.approx(norm(start))
    factors = [rows[t, "group0.param0"]["debias1"] for t in done]
    assert factors == pytest.approx([1 / (1 - 0.9**t) for t in (1, 2, 3)])
    for t in done:  # the unscaled gradient
        assert rows[t, "group0.param0"]["grad_max"] == 2


def test_a_bfloat16_gradient_that_lamb_clips_is_rounded_as_in_lamb(tmp_path):
    p = torch.nn.Parameter(torch.randn(300).bfloat16())
    optimizer = trustlens.optim.Lamb([p], lr=0.01, max_grad_norm=0.3)
    gradient = torch.randn(300).bfloat16()
    row = record_steps(tmp_path / "run", optimizer, [[gradient]])[1, "group0.param0"]
    state = optimizer.state[p]
    used = (gradient.float() / state["grad_divisor"]).bfloat16()
    assert row["grad_norm"] == pytest.approx(norm(wide(used)), rel=1e-6)
    assert row["momentum_norm"] == pytest.approx(norm(wide(state["exp_avg"])), rel=1e-6)
