"""LAMB and LARS of other packages: the recorded r equals the one that the weights show."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import bitsandbytes.optim
import pytest
import pytorch_optimizer
import torch
import torch_optimizer

import trustlens
from tests.support import stand_ins
from tests.support.simulation import (
    TOLERANCE,
    compare,
    expected_row,
    norm,
    rows_of,
    sizes_of_products,
    wide,
)
from tests.support.third_party import (
    BETAS,
    CASES,
    NO_CLIP,
    SHAPES,
    Seen,
    made,
    parameters_of,
)
from trustlens.recording.optimizers import family_of

STEPS = 5


def train(optimizer, parameters, each=lambda step, grads: None):
    make = torch.Generator().manual_seed(2)
    for step in range(1, STEPS + 1):
        grads = [torch.randn(p.shape, generator=make) for p in parameters]
        if len(parameters) == len(SHAPES):
            grads[-1].zero_()
        for p, g in zip(parameters, grads, strict=True):
            p.grad = g.clone()
        each(step, grads)
        if step == 2:
            for group in optimizer.param_groups:
                group["lr"] *= 0.5


def names_of(optimizer):
    groups = optimizer.param_groups
    return [
        f"group{i}.param{j}" for i, group in enumerate(groups) for j in range(len(group["params"]))
    ]


def everything(optimizer, parameters):
    """Return the weights, gradients and states after a training, as bytes."""
    kept = [p.detach() for p in parameters] + [p.grad for p in parameters]
    for p in parameters:
        kept += [value for value in optimizer.state[p].values() if isinstance(value, torch.Tensor)]
    return [tensor.numpy().tobytes() for tensor in kept]


@pytest.fixture
def patched(monkeypatch):
    def patch(case):
        for name, value in case.patch.items():
            monkeypatch.setattr(case.kind, name, value)
        version = SimpleNamespace(__version__=case.patch.get("version", ""))
        monkeypatch.setitem(sys.modules, "deepspeed", version)

    return patch


@pytest.mark.parametrize("name", CASES)
def test_the_recorded_ratio_is_the_one_that_was_applied(tmp_path, patched, name):
    case = CASES[name]
    patched(case)
    parameters = parameters_of(case.shapes)
    optimizer = made(case, parameters)
    names, expected, groups = names_of(optimizer), {}, optimizer.param_groups

    def step_and_observe(step, grads):
        before = [wide(p) for p in parameters]
        old = [
            {
                k: torch.clone(v)
                for k, v in optimizer.state[p].items()
                if isinstance(v, torch.Tensor)
            }
            for p in parameters
        ]
        optimizer.step()
        places = [group for group in groups for _ in group["params"]]
        for i, (p, g) in enumerate(zip(parameters, case.used(grads), strict=True)):
            seen = Seen(places[i], optimizer.state[p], old[i], before[i], wide(p), wide(g), step)
            did = case.seen(seen)
            row = expected_row(before[i], wide(p), wide(g), did, rate=seen.lr, eps=case.eps)
            if "state1" in seen.state and seen.state["state1"].dtype == torch.uint8:
                row["swallowed"] = None  # measured: d is 0 if the change is 0
            expected[step, names[i]] = row, sizes_of_products(before[i], wide(p), wide(g), did)

    with trustlens.record(optimizer, tmp_path / "run"):
        train(optimizer, parameters, step_and_observe)
    rows = rows_of(tmp_path / "run")
    assert rows.keys() == expected.keys()
    for place, (row, products) in expected.items():
        compare(rows[place], row, products, (name, *place))
    info = json.loads((tmp_path / "run" / "run.json").read_text())["optimizers"][0]
    assert (info["family"], info["variant"]) == (case.family, case.variant)

    alone = parameters_of(case.shapes)
    unrecorded = made(case, alone)
    train(unrecorded, alone, lambda *_: unrecorded.step())
    assert everything(optimizer, parameters) == everything(unrecorded, alone)


class Doubled(list):
    """A list that doubles the ratios, to distinguish them from those of the rule."""

    def append(self, ratio):
        super().append(2 * ratio)


class Longer(list):
    """A list longer than the layers with a gradient, as if gradients had been passed to `step`."""

    def append(self, ratio):
        self += [ratio, ratio]


@pytest.mark.parametrize(("kind", "every"), [(Doubled, 1), (Longer, 2)])
def test_deepspeeds_ratios_are_assigned_to_the_layers_with_a_gradient(
    tmp_path, patched, kind, every
):
    patched(CASES["DeepSpeed"])
    parameters = parameters_of(((4, 3), (3,), (6,), (2,)))
    optimizer = made(CASES["DeepSpeed"], parameters)
    optimizer.lamb_coeffs = kind()
    expected = {}
    with trustlens.record(optimizer, tmp_path / "run"):
        for step, missing in enumerate((1, 0, None), start=1):
            for i, p in enumerate(parameters):
                p.grad = None if i == missing else torch.randn_like(p)
            optimizer.step()
            ratios = torch.cat(optimizer.lamb_coeffs[::every]).tolist()
            if missing is not None:
                ratios.insert(missing, None)
            names = names_of(optimizer)
            expected |= {(step, name): r for name, r in zip(names, ratios, strict=True)}
    rows = rows_of(tmp_path / "run")
    assert rows.keys() == expected.keys()
    for place, ratio in expected.items():
        assert rows[place]["trust_ratio"] == (ratio and pytest.approx(ratio, rel=1e-6)), place


def test_a_rectified_lamb_is_measured_with_its_stored_ratio(tmp_path):
    # Its first five steps only decay: with β₂ = 0.99, n_sma exceeds 5 from step 6 on.
    (p,) = parameters = parameters_of(SHAPES)[3:4]
    optimizer = pytorch_optimizer.Lamb(
        parameters, lr=0.02, betas=BETAS, weight_decay=0.1, rectify=True
    )
    ratios, lengths = {}, {}
    with trustlens.record(optimizer, tmp_path / "run"):
        for step in range(1, 10):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            before = wide(p)
            optimizer.step()
            ratios[step] = optimizer.state[p].get("trust_ratio")
            lengths[step] = norm(wide(p) - before + 0.02 * 0.1 * before)
    rows = rows_of(tmp_path / "run")
    assert [ratio is None for ratio in ratios.values()] == [True] * 5 + [False] * 4
    for step, ratio in ratios.items():
        row = rows[step, "group0.param0"]
        if ratio is None:
            assert row["trust_ratio"] is row["direction_norm"] is None
            continue
        assert row["trust_ratio"] == pytest.approx(float(ratio), rel=1e-6)
        length = lengths[step] / (0.02 * float(ratio))
        assert row["undecayed_norm"] == pytest.approx(length, rel=TOLERANCE)
        assert row["swallowed"] is None


def test_a_copy_of_pytorch_lamb_is_recognized_by_its_state(tmp_path):
    for adam in (False, True):
        p, _ = parameters = parameters_of(SHAPES[:2])
        optimizer = stand_ins.Copied(parameters, lr=0.05, weight_decay=0.1, adam=adam)
        assert family_of(optimizer).name == ""  # of unknown class
        seen = {}
        with trustlens.record(optimizer, tmp_path / f"run-{adam}"):
            for step in (1, 2, 3):
                for each in parameters:
                    each.grad = torch.randn_like(each)
                before = wide(p)
                optimizer.step()
                state = optimizer.state[p]
                u = norm(
                    wide(state["exp_avg"] / (state["exp_avg_sq"].sqrt() + 1e-6)) + 0.1 * before
                )
                seen[step] = norm(wide(p) - before) / (0.05 * u), u
        rows = rows_of(tmp_path / f"run-{adam}")
        for step, (ratio, u) in seen.items():
            row = rows[step, "group0.param0"]
            assert row["trust_ratio"] == pytest.approx(ratio, rel=1e-5), adam
            assert row["direction_norm"] == pytest.approx(u, rel=1e-5)
            assert row["undecayed_norm"] is None
            assert row["grad_dot_momentum"] is not None
        assert rows[1, "group0.param1"]["trust_ratio"] == (1.0 if adam else 0.0)


def test_a_gradient_that_the_step_overwrites_is_copied_after_the_closure(tmp_path):
    (p,) = parameters = parameters_of(((4, 3),))
    optimizer = stand_ins.FusedLAMB(parameters, lr=0.05, **NO_CLIP)

    def closure():
        p.grad = torch.full((4, 3), 0.5)
        return 0.0

    with trustlens.record(optimizer, tmp_path / "run"):
        optimizer.step(closure)
    assert not (p.grad == 0.5).any()  # it holds the update now
    row = rows_of(tmp_path / "run")[1, "group0.param0"]
    assert row["grad_norm"] == pytest.approx(0.5 * 12**0.5)
    assert row["grad_max"] == 0.5


def test_quantities_are_null_if_a_parameter_overrides_its_groups_options(tmp_path, monkeypatch):
    (p,) = parameters = parameters_of(SHAPES[:1])
    optimizer = bitsandbytes.optim.LAMB(parameters, lr=0.05)
    monkeypatch.setitem(optimizer.mng.pid2config, id(p), {"betas": (0.5, 0.5)})
    with trustlens.record(optimizer, tmp_path / "run"):
        p.grad = torch.randn_like(p)
        optimizer.step()
    row = rows_of(tmp_path / "run")[1, "group0.param0"]
    assert row["trust_ratio"] is row["direction_norm"] is row["momentum_norm"] is None
    assert row["update_norm"] > 0


def test_adam_with_8_bit_states_is_measured(tmp_path):
    (p,) = parameters = parameters_of(((70, 60),))
    optimizer = bitsandbytes.optim.AdamW8bit(parameters, lr=0.02, weight_decay=0.0)
    with trustlens.record(optimizer, tmp_path / "run"):
        p.grad = torch.randn_like(p)
        before = wide(p)
        optimizer.step()
    row = rows_of(tmp_path / "run")[1, "group0.param0"]
    assert row["direction_norm"] == pytest.approx(norm(wide(p) - before) / 0.02, rel=1e-6)
    assert row["momentum_norm"] is row["variance_sum"] is row["swallowed"] is None


class MyLamb(torch_optimizer.Lamb):
    """Inherits its parent's step."""


class OtherStep(torch_optimizer.Lamb):
    def step(self, closure=None):
        return super().step(closure)


def test_a_subclass_has_its_parents_variant_only_with_its_parents_step():
    parameters = parameters_of(SHAPES)
    assert family_of(MyLamb(parameters)).variant == "torch-optimizer"
    assert family_of(torch_optimizer.Lamb(parameters)).variant == "torch-optimizer"
    assert family_of(OtherStep(parameters)).name == ""
    assert family_of(torch_optimizer.DiffGrad(parameters)).name == ""
    assert family_of(bitsandbytes.optim.AdamW(parameters)).name == ""


def test_the_gradient_recorded_with_larc_is_the_one_it_scaled(tmp_path):
    # LARC is no optimizer: it scales the gradient, sets the decay to 0 and calls SGD's step.
    (p,) = parameters = parameters_of(SHAPES)[3:4]
    inner = torch.optim.SGD(parameters, lr=0.1, weight_decay=0.1)
    larc = stand_ins.LARC(inner)
    p.grad = torch.ones(3)
    before = wide(p)
    with trustlens.record(larc, tmp_path / "run"):
        larc.step()
    row = rows_of(tmp_path / "run")[1, "group0.param0"]
    share = min(0.02 * norm(before) / (3**0.5 + 0.1 * norm(before)) / 0.1, 1)
    assert row["grad_norm"] == pytest.approx(share * norm(1 + 0.1 * before), rel=TOLERANCE)
    assert row["direction_norm"] == row["grad_norm"]
    assert row["update_norm"] == pytest.approx(0.1 * row["grad_norm"], rel=TOLERANCE)
    assert inner.param_groups[0]["weight_decay"] == 0.1
