"""`Run.trust_ratio` raises if the stored columns do not determine a variant's ratio."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import tests.support.lamb_formulas as of
import trustlens
from tests.support.lamb_training import (
    BETAS,
    DECAYED,
    Adam,
    assert_ratios,
    make_optimizer,
    problem,
    train,
)
from tests.support.runs import layers_table, make_run, run_info, steps_table, synthetic_values
from trustlens.errors import UsageError
from trustlens.optim import Lars
from trustlens.store.run_info import OptimizerInfo, read_info, write_info
from trustlens.store.writer import RunWriter

# Variants that clip all gradients together.


@pytest.mark.parametrize("variant", ["apex", "timm"])
def test_steps_before_the_first_clipped_one_can_be_computed(tmp_path, variant):
    _, grads = problem()
    grads[3]["matrix"] = grads[3]["matrix"] * 20
    seen = train(tmp_path, lambda groups: make_optimizer("AdamW", groups), grads)
    run = trustlens.open_run(tmp_path)
    with pytest.raises(
        UsageError, match=r"the norm \d\.\d+ at step 4.*max_grad_norm=None"
    ) as caught:
        run.trust_ratio(variant)
    assert "steps=slice(None, 4)" in str(caught.value)
    with pytest.raises(UsageError, match="at step 4"):
        run.trust_ratio(variant, steps=[6])
    formula = of.apex
    assert_ratios(run.trust_ratio(variant, max_grad_norm=None), seen, formula)
    assert_ratios(run.trust_ratio(variant, max_grad_norm=1e3), seen, formula)
    before = {at: value for at, value in seen.items() if at[0] < 4}
    assert_ratios(run.trust_ratio(variant, steps=slice(None, 4)), before, formula)


@pytest.mark.parametrize("every", [1, 2])
def test_a_lamb_that_clipped_has_the_ratio_that_it_applied(tmp_path, every):
    _, grads = problem(scale=2.0)
    train(tmp_path, lambda groups: make_optimizer("timm", groups), grads, every=every)
    run = trustlens.open_run(tmp_path)
    np.testing.assert_allclose(run.trust_ratio("timm"), run.matrix("trust_ratio"), rtol=5e-7)
    with pytest.raises(UsageError, match="at step 1:" if every == 1 else "step 2 were not"):
        run.trust_ratio("timm", max_grad_norm=0.5)


def test_two_optimizers_clip_separately(tmp_path):
    def make(groups):
        return [make_optimizer("AdamW", [group]) for group in groups]

    _, grads = problem()
    each = {
        decayed: max(
            of.norm(np.concatenate([g.ravel() for n, g in of_step.items() if keep(n, decayed, g)]))
            for of_step in grads
        )
        for decayed in (True, False)
    }
    bound = 1.001 * max(each.values())
    seen = train(tmp_path, make, grads)
    run = trustlens.open_run(tmp_path)
    assert_ratios(run.trust_ratio("apex", max_grad_norm=bound), seen, of.apex)
    with pytest.raises(UsageError, match="max_grad_norm="):
        run.trust_ratio("apex", max_grad_norm=bound / 1.01)


def keep(name, decayed, g):
    return g is not None and (name in DECAYED) == decayed


def test_unrecorded_steps_are_rejected_with_clipping(tmp_path):
    seen = train(tmp_path, lambda groups: make_optimizer("AdamW", groups), every=2)
    run = trustlens.open_run(tmp_path)
    with pytest.raises(UsageError, match=r"step 2 were not recorded.*max_grad_norm=None"):
        run.trust_ratio("apex")
    odd = {at: value for at, value in seen.items() if at[0] % 2}
    assert_ratios(run.trust_ratio("apex", max_grad_norm=None), odd, of.apex)
    first = {at: value for at, value in seen.items() if at[0] == 1}
    assert_ratios(run.trust_ratio("apex", steps=[1]), first, of.apex)


def test_steps_before_the_recording_are_rejected_with_clipping(tmp_path):
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([p])
    p.grad = torch.full((3,), 0.1)
    optimizer.step()
    with trustlens.record(optimizer, tmp_path / "late"):
        optimizer.step()
    run = trustlens.open_run(tmp_path / "late")
    with pytest.raises(UsageError, match="had taken steps before the recording began"):
        run.trust_ratio("apex")
    assert run.trust_ratio("apex", max_grad_norm=None).notna().all(axis=None)


def test_a_late_start_is_detected_by_the_debias_factors(tmp_path):
    values = {name: np.ones(1) for name in ("debias1", "debias2")}  # of step 10,000, say
    run = trustlens.open_run(make_run(tmp_path / "run", values=values | {"grad_norm": np.ones(1)}))
    with pytest.raises(UsageError, match="had taken steps before the recording began"):
        run.trust_ratio("apex", max_grad_norm=1e6)


def test_a_late_start_of_a_lamb_that_debiases_in_its_rate_is_detected(tmp_path):
    rate = OptimizerInfo("elsewhere.Lamb", ({"betas": [0.9, 0.99]},), "LAMB", "deepspeed")
    values = {"debias1": np.full(1, 2.0), "debias2": np.full(1, 9.0), "grad_norm": np.ones(1)}
    path = make_run(tmp_path / "run", values=values)
    write_info(path, replace(read_info(path), optimizers=(rate,)))
    with pytest.raises(UsageError, match="had taken steps before the recording began"):
        trustlens.open_run(path).trust_ratio("apex", max_grad_norm=1e6)


@pytest.mark.parametrize("variant", ["apex", "timm", "pytorch_optimizer"])
def test_max_grad_norm_counts_only_for_a_lamb_that_clips(tmp_path, variant):
    path = make_run(tmp_path / "run", values={"grad_norm": np.ones(1)})
    other = OptimizerInfo("elsewhere.Lamb", ({"max_grad_norm": 1.0},), "LAMB", variant)
    write_info(path, replace(read_info(path), optimizers=(other,)))
    run = trustlens.open_run(path)
    if variant != "pytorch_optimizer":
        assert run.trust_ratio("apex").notna().all(axis=None)
    else:  # it clips only with another option
        with pytest.raises(UsageError, match=r"the norm 2\.828 at step 1"):
            run.trust_ratio("apex")


def test_lost_steps_are_rejected_with_clipping(tmp_path):
    steps, names = np.array([1, 2, 4]), ["a.weight", "a.bias"]
    values = synthetic_values(3, 2) | {"grad_norm": np.full(1, 0.1)}
    writer = RunWriter(tmp_path, run_info())
    writer.append("layers", layers_table(steps, names, values))
    writer.append("steps", steps_table(steps))
    writer.close(writer.info.closed_at("2026-11-01T00:00:00+00:00"))
    run = trustlens.open_run(tmp_path)
    with pytest.raises(UsageError, match="the gradients of step 3 were not recorded"):
        run.trust_ratio("apex")
    assert run.trust_ratio("apex", steps=slice(None, 3)).notna().all(axis=None)


def test_gradients_clipped_to_the_bound_are_within_it(tmp_path):
    _, grads = problem()
    for of_step in grads:  # norm 1, up to rounding in float32
        total = of.norm(np.concatenate([g.ravel() for g in of_step.values() if g is not None]))
        of_step |= {n: g / total for n, g in of_step.items() if g is not None}
    seen = train(tmp_path, lambda groups: make_optimizer("AdamW", groups), grads)
    assert_ratios(trustlens.open_run(tmp_path).trust_ratio("apex"), seen, of.apex)


def test_a_gradient_that_is_not_finite_exceeds_any_bound(tmp_path):
    _, grads = problem()
    grads[1]["bias"] = np.full_like(grads[1]["bias"], np.nan)
    train(tmp_path, lambda groups: make_optimizer("AdamW", groups), grads)
    run = trustlens.open_run(tmp_path)
    with pytest.raises(UsageError, match="the norm nan at step 2"):
        run.trust_ratio("apex")
    frame = run.trust_ratio("apex", max_grad_norm=None, always_adapt=True)
    assert frame["bias"].notna().tolist() == [True] + [False] * 5
    assert frame["matrix"].notna().all()


# Runs whose direction differs from Adam's.

REFUSED = {
    "SGD": (lambda g: torch.optim.SGD(g, 0.1), r"torch.optim.sgd.SGD whose direction is not"),
    "NAdam": (lambda g: torch.optim.NAdam(g, 0.1), r"NAdam whose direction is not"),
    "Adamax": (lambda g: torch.optim.Adamax(g, 0.1), r"Adamax whose direction is not"),
    "Lars": (lambda g: Lars(g, 0.1), r"Lars whose direction is not"),
    "amsgrad": (lambda g: torch.optim.AdamW(g, amsgrad=True), r"record a run with amsgrad=False"),
    "Adam": (
        torch.optim.Adam,
        r"weight_decay=0.1 is added to the gradient.*record a run with AdamW or without decay",
    ),
    "one of two": (
        lambda g: [torch.optim.AdamW(g[:1]), torch.optim.SGD(g[1:], 0.1)],
        r"sgd.SGD whose direction is not",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_error_says_why_a_run_is_rejected(tmp_path, case):
    make, message = REFUSED[case]
    train(tmp_path / "mine", make)
    with pytest.raises(UsageError, match=message) as caught:
        trustlens.open_run(tmp_path / "mine").trust_ratio("deepspeed")
    assert str(caught.value).startswith("trust_ratio of run 'mine' cannot be computed")


def test_adam_without_decay_is_accepted(tmp_path):
    def make(groups):
        return torch.optim.Adam(groups, lr=of.LR, betas=BETAS, eps=Adam.eps)

    seen = train(tmp_path, make, decay=0)
    assert_ratios(trustlens.open_run(tmp_path).trust_ratio("deepspeed"), seen, of.deepspeed)


TIMM = OptimizerInfo("timm.optim.lamb.Lamb", ({},), "LAMB", "timm")
KOZISTR = OptimizerInfo("pytorch_optimizer.Lamb", ({},), "LAMB", "pytorch_optimizer")
JETTIFY = OptimizerInfo("torch_optimizer.Lamb", ({},), "LAMB", "torch-optimizer")
APEX = OptimizerInfo("apex.optimizers.FusedLAMB", ({},), "LAMB", "apex")
FUSED_ADAM = OptimizerInfo("apex.optimizers.FusedAdam", ({},), "Adam")
OTHER = OptimizerInfo("elsewhere.Adam", ({"weight_decay": 0.1},), "Adam")
OTHER_W = OptimizerInfo("elsewhere.AdamW", ({"weight_decay": 0.1},), "AdamW")


@pytest.mark.parametrize(
    ("optimizer", "options", "values", "message"),
    [
        (TIMM, {"caution": True}, {}, "with caution=True: it zeroes"),
        (TIMM, {"rectify": True}, {}, "with rectify=True"),
        (TIMM, {"grad_averaging": False}, {}, "with grad_averaging=False"),
        (TIMM, {"bias_correction": False}, {"debias2": 1.0}, "does not debias"),
        (TIMM, {"bias_correction": True}, {"debias2": 1.0}, None),  # after many steps
        (APEX, {}, {}, None),
        (FUSED_ADAM, {"bias_correction": False}, {"debias2": 1.0}, "does not debias"),
        (KOZISTR, {}, {"debias2": 1.0}, "does not debias"),
        (JETTIFY, {}, {"debias2": 1.0}, "does not debias"),
        (OTHER, {}, {"weight_decay": 0.1}, None),
        (OTHER, {}, {"weight_decay": 0.0}, "weight_decay=0.1 is added to the gradient"),
        (OTHER_W, {}, {"weight_decay": 0.0}, None),  # decay scheduled to 0
        (replace(TIMM, groups=()), None, {}, "does not hold the options of group 0"),
    ],
)
def test_optimizers_of_other_packages(tmp_path, optimizer, options, values, message):
    path = make_run(tmp_path / "run", values={n: np.full(1, x) for n, x in values.items()})
    groups = () if options is None else ({**optimizer.groups[0], **options},)
    write_info(path, replace(read_info(path), optimizers=(replace(optimizer, groups=groups),)))
    run = trustlens.open_run(path)
    assert run.family == optimizer.family
    if message is None:
        assert run.trust_ratio("optax").notna().all(axis=None)
    else:
        with pytest.raises(UsageError, match=message):
            run.trust_ratio("optax")


def test_debias_factors_of_the_rate_also_debias_the_direction(tmp_path):
    factors = {"debias1": np.full(1, 10.0), "debias2": np.full(1, 4.0)}
    path = make_run(tmp_path / "run", values=factors)
    write_info(path, replace(read_info(path), optimizers=(JETTIFY,)))
    run = trustlens.open_run(path)
    # √v̂ is 2√v and m̂ is 10m, so d is 5 times as long, and r as many times smaller.
    np.testing.assert_allclose(
        run.trust_ratio("optax"), run.trust_ratio("optax", debias=False) / 5, rtol=1e-12
    )


def test_an_unknown_direction_is_rejected(tmp_path):
    unknown = dict.fromkeys(("weight_decay", "undecayed_norm", "debias1", "debias2"))
    run = trustlens.open_run(make_run(tmp_path / "run", values=unknown))
    assert (run.matrix("update_norm") > 0).all(axis=None)
    with pytest.raises(UsageError, match="was unknown when it was recorded"):
        run.trust_ratio()


def test_layers_without_steps_need_no_direction(tmp_path):
    values = {"weight_decay": None, "undecayed_norm": None, "update_norm": np.zeros(1)}
    run = trustlens.open_run(make_run(tmp_path / "run", values=values))
    assert run.trust_ratio().isna().all(axis=None)
