"""Compare LAMB and its variants with independent float64 formulas."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.support.lamb_formulas as formulas
from tests.support.fused_steps import FUSED, needs_compiler
from tests.support.lamb_formulas import (
    BETA1,
    BETA2,
    EPS,
    LR,
    STEPS,
    Adam,
    article,
    norm,
    optax,
    problem,
    simulate,
)
from trustlens.errors import UsageError
from trustlens.optim import LAMB_VARIANTS, Lamb

V = LAMB_VARIANTS
CASES = {
    "article": (formulas.article, V["article"]),
    "pytorch-lamb": (formulas.pytorch_lamb, V["pytorch-lamb"]),
    "torch-optimizer": (formulas.pytorch_lamb, V["torch-optimizer"]),
    "torch-optimizer, debias": (
        formulas.torch_optimizer_debiased,
        {**V["torch-optimizer"], "debias": "rate"},
    ),
    "pytorch_optimizer": (formulas.pytorch_optimizer, V["pytorch_optimizer"]),
    "apex": (formulas.apex, V["apex"]),
    "apex, use_nvlamb": (formulas.apex_nvlamb, {**V["apex"], "always_adapt": True}),
    "deepspeed": (formulas.deepspeed, V["deepspeed"]),
    "timm": (formulas.apex, V["timm"]),
    "timm, trust_clip": (formulas.timm_trust_clip, {**V["timm"], "clip_ratio": (0.0, 1.0)}),
    "timm, decoupled_decay": (formulas.timm_decoupled, {**V["timm"], "decay": "first"}),
    "bitsandbytes": (formulas.bitsandbytes, V["bitsandbytes"]),
    "bitsandbytes, max_unorm": (
        formulas.bitsandbytes_half,
        {**V["bitsandbytes"], "trust_coefficient": 0.5},
    ),
    "optax": (formulas.optax, V["optax"]),
    "tensorflow-addons": (formulas.optax, V["tensorflow-addons"]),
}


def parameters(weights, dtype):
    return {n: torch.nn.Parameter(torch.tensor(w, dtype=dtype)) for n, w in weights.items()}


def step(optimizer, params, step_grads):
    for name, p in params.items():
        p.grad = torch.tensor(step_grads[name], dtype=p.dtype) if name in step_grads else None
    optimizer.step()


@pytest.mark.parametrize(
    ("dtype", "tolerance", "fused"),
    [
        (torch.float64, 1e-12, None),
        (torch.float32, 2e-5, False),
        pytest.param(torch.float32, 2e-5, True, marks=needs_compiler),
    ],
)
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("case", CASES)
def test_each_variant_agrees_with_its_formula(case, decay, dtype, tolerance, fused):
    formula, options = CASES[case]
    weights, grads = problem()
    params = parameters(weights, dtype)
    options = {**options, "weight_decay": decay, "fused": fused}
    optimizer = Lamb(params.values(), LR, (BETA1, BETA2), eps=EPS, **options)
    bound = options.get("max_grad_norm")
    expected = simulate(formula, weights, grads, decay, max_grad_norm=bound)
    for step_grads, (after, ratios) in zip(grads, expected, strict=True):
        step(optimizer, params, step_grads)
        for name, p in params.items():
            moved = p.detach().double().numpy()
            # relative to the layer's norm, since elements near 0 have larger relative errors
            assert norm(moved - after[name]) <= tolerance * max(norm(after[name]), LR), name
            applied = optimizer.state[p]["trust_ratio"]
            assert applied.dtype == torch.float32
            assert applied.shape == ()
            assert applied.item() == pytest.approx(ratios[name], rel=2e-5), name


def test_the_problem_contains_layers_with_zero_norms_and_ratios_beyond_the_bounds():
    weights, grads = problem()
    _, ratios = simulate(article, weights, grads, 0.0)[0]
    assert ratios["zero"] == 1  # r₁ = 0
    assert ratios["idle"] == 1  # r₂ = 0
    assert ratios["large"] == 10
    _, unclipped = simulate(optax, weights, grads, 0.0)[0]
    assert unclipped["large"] > 10
    assert unclipped["small"] < 0.01


def test_every_variant_is_tested():
    assert set(LAMB_VARIANTS) <= set(CASES)


@given(
    shape=st.lists(st.integers(1, 4), max_size=4).map(tuple),
    steps=st.integers(1, 6),
    decay=st.sampled_from([0.0, 0.01, 1.0]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=25, deadline=None)
def test_random_shapes_and_numbers_of_steps(shape, steps, decay, seed):
    rng = np.random.default_rng(seed)
    weights = {"w": rng.normal(size=shape)}
    grads = [{"w": rng.normal(size=shape)} for _ in range(steps)]
    params = parameters(weights, torch.float64)
    optimizer = Lamb(params.values(), LR, (BETA1, BETA2), eps=EPS, weight_decay=decay)
    for step_grads in grads:
        step(optimizer, params, step_grads)
    after, ratios = simulate(article, weights, grads, decay)[-1]
    np.testing.assert_allclose(params["w"].detach().numpy(), after["w"], rtol=1e-9, atol=1e-12)
    assert optimizer.state[params["w"]]["trust_ratio"].item() == pytest.approx(ratios["w"])


@pytest.mark.parametrize("fused", FUSED)
def test_the_ratio_of_a_large_layer_is_exact(fused):
    # a plain float32 sum has an error of 1e-5 here
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(1_000_000))
    weight, grad = p.detach().double().numpy(), torch.randn(1_000_000)
    optimizer = Lamb([p], fused=fused)
    p.grad = grad
    optimizer.step()
    g = grad.double().numpy()
    direction = g / (np.abs(g) + 1e-6)
    expected = norm(weight) / norm(direction)
    assert optimizer.state[p]["trust_ratio"].item() == pytest.approx(expected, rel=5e-7)


def test_each_group_uses_its_own_options():
    weights, grads = problem()
    params = parameters(weights, torch.float64)
    first, second = ["matrix", "large"], ["bias", "scalar", "zero", "small", "idle"]
    optimizer = Lamb(
        [
            {"params": [params[n] for n in first], "weight_decay": 0.1},
            {"params": [params[n] for n in second], "lr": 0.5, "clip_ratio": None},
        ],
        LR,
        (BETA1, BETA2),
        eps=EPS,
    )
    for step_grads in grads:
        step(optimizer, params, step_grads)
    a, _ = simulate(article, weights, grads, 0.1)[-1]
    b, _ = simulate(optax, weights, grads, 0.0, rates=[0.5] * STEPS)[-1]
    for name, p in params.items():
        expected = (a if name in first else b)[name]
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_max_grad_norm_applies_to_the_gradients_of_all_groups(dtype):
    weights, grads = problem()
    params = parameters(weights, dtype)
    params["matrix"] = torch.nn.Parameter(params["matrix"].detach().double())  # never fused
    names = list(params)
    optimizer = Lamb(
        [{"params": [params[n]]} for n in names], LR, (BETA1, BETA2), eps=EPS, max_grad_norm=1.0
    )
    step(optimizer, params, grads[0])
    total = np.sqrt(sum((g * g).sum() for g in grads[0].values()))
    for name, p in params.items():
        assert torch.equal(p.grad, torch.tensor(grads[0][name], dtype=p.dtype))  # unchanged
        assert optimizer.state[p]["grad_divisor"].item() == pytest.approx(total, rel=1e-6)
        np.testing.assert_allclose(
            optimizer.state[p]["exp_avg"], (1 - BETA1) * grads[0][name] / total, rtol=1e-6
        )


def test_each_layer_has_its_own_step_count():
    weights, grads = problem()
    params = parameters(weights, torch.float64)
    optimizer = Lamb(params.values(), LR, (BETA1, BETA2), eps=EPS)
    for i, step_grads in enumerate(grads):
        step(optimizer, params, step_grads if i % 2 == 0 else {"bias": step_grads["bias"]})
    always, _ = simulate(article, weights, grads, 0.0)[-1]
    sometimes, _ = simulate(article, weights, grads[::2], 0.0)[-1]
    assert optimizer.state[params["bias"]]["step"].item() == STEPS
    assert optimizer.state[params["matrix"]]["step"].item() == len(grads[::2])
    np.testing.assert_allclose(params["bias"].detach().numpy(), always["bias"], rtol=1e-9)
    np.testing.assert_allclose(params["matrix"].detach().numpy(), sometimes["matrix"], rtol=1e-9)


def test_a_parameter_without_gradient_does_not_change():
    used, unused = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = Lamb([used, unused], max_grad_norm=1.0)
    optimizer.step()  # nothing has a gradient yet
    used.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(unused, torch.ones(3))
    assert unused not in optimizer.state


@pytest.mark.parametrize("case", ["article", "pytorch_optimizer", "bitsandbytes"])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_the_learning_rate_may_be_a_tensor(case, shape):
    weights, grads = problem()
    options = {**LAMB_VARIANTS[case], "weight_decay": 0.1}
    as_number, as_tensor = (parameters(weights, torch.float64) for _ in range(2))
    lr = torch.full(shape, LR, dtype=torch.float64)
    optimizers = Lamb(as_number.values(), LR, **options), Lamb(as_tensor.values(), lr, **options)
    for step_grads in grads:
        step(optimizers[0], as_number, step_grads)
        step(optimizers[1], as_tensor, step_grads)
    for name in weights:
        torch.testing.assert_close(as_tensor[name], as_number[name], rtol=1e-12, atol=0)


def test_a_schedule_changes_the_learning_rate():
    weights, grads = problem()
    params = parameters(weights, torch.float64)
    optimizer = Lamb(params.values(), LR, (BETA1, BETA2), eps=EPS)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    for step_grads in grads:
        step(optimizer, params, step_grads)
        schedule.step()
    rates = [LR * 0.5 ** (i // 2) for i in range(STEPS)]
    after, _ = simulate(article, weights, grads, 0.0, rates=rates)[-1]
    for name, p in params.items():
        np.testing.assert_allclose(p.detach().numpy(), after[name], rtol=1e-9, err_msg=name)


def test_a_closure_computes_loss_and_gradients():
    p = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = Lamb([p], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 25
    assert p.square().sum().item() < 25


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options", [{}, {"fused": False}, LAMB_VARIANTS["timm"], {"decay": "first"}]
)
def test_a_restored_optimizer_continues_with_identical_results(tmp_path, dtype, options):
    weights, grads = problem(steps=8)
    options = {"lr": LR, "weight_decay": 0.01, **options}
    params = parameters(weights, dtype)
    optimizer = Lamb(params.values(), **options)
    for step_grads in grads[:4]:
        step(optimizer, params, step_grads)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    others = {n: torch.nn.Parameter(p.detach().clone()) for n, p in params.items()}
    restored = Lamb(others.values(), **options)
    restored.load_state_dict(torch.load(tmp_path / "state.pt"))
    cloned_params, cloned = copy.deepcopy((params, optimizer))
    for step_grads in grads[4:]:
        step(optimizer, params, step_grads)
        step(restored, others, step_grads)
        step(cloned, cloned_params, step_grads)
    for name, p in params.items():
        for other, its in ((others[name], restored), (cloned_params[name], cloned)):
            assert torch.equal(p, other)
            for key, value in optimizer.state[p].items():
                assert torch.equal(value, its.state[other][key]), key


def test_half_precision_is_stepped_in_float32_and_rounded_once():
    weights, grads = problem()
    params = parameters(weights, torch.bfloat16)
    start = {n: p.detach().double().numpy() for n, p in params.items()}
    optimizer = Lamb(params.values(), LR, (BETA1, BETA2), eps=EPS)
    step(optimizer, params, grads[0])
    for name, p in params.items():
        state = optimizer.state[p]
        assert state["exp_avg"].dtype == torch.bfloat16
        m, v = (state[key].double().numpy() for key in ("exp_avg", "exp_avg_sq"))
        after, r = article(start[name], Adam(m, v, 1, LR, 0.0))
        assert state["trust_ratio"].dtype == torch.float32
        assert state["trust_ratio"].item() == pytest.approx(r, rel=1e-6)
        # half a unit in the last of 8 bits, and the error of float32
        np.testing.assert_allclose(p.detach().double().numpy(), after, rtol=2**-8, err_msg=name)


@pytest.mark.parametrize("case", LAMB_VARIANTS)
def test_a_step_does_not_synchronize(case):
    # a meta tensor has no values: reading one raises an error
    params = [torch.nn.Parameter(torch.empty(3, 2, device="meta")) for _ in range(2)]
    optimizer = Lamb(params, weight_decay=0.1, **LAMB_VARIANTS[case])
    for _ in range(2):
        for p in params:
            p.grad = torch.empty_like(p)
        optimizer.step()
    assert optimizer.state[params[0]]["trust_ratio"].device.type == "meta"
    assert optimizer.state[params[0]]["step"].device.type == "cpu"


@pytest.mark.parametrize(
    ("options", "received"),
    [
        ({"lr": -1.0}, "lr=-1.0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"lr": "fast"}, "lr='fast'"),
        ({"lr": torch.ones(2)}, "lr as a tensor of shape (2,)"),
        ({"betas": (0.9, 1.0)}, "betas[1]=1.0"),
        ({"betas": 0.9}, "betas=0.9"),
        ({"eps": -1e-8}, "eps=-1e-08"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"debias": "yes"}, "debias='yes'"),
        ({"debias": 1}, "debias=1"),
        ({"decay": "outside"}, "decay='outside'"),
        ({"clip_ratio": (10, 0)}, "clip_ratio=(10, 0)"),
        ({"clip_ratio": 10}, "clip_ratio=10"),
        ({"clip_weight_norm": 0.0}, "clip_weight_norm=0.0"),
        ({"max_grad_norm": 0}, "max_grad_norm=0"),
        ({"always_adapt": "no"}, "always_adapt='no'"),
    ],
)
def test_an_option_out_of_range_is_refused_with_one_line(options, received):
    p = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(UsageError) as default:
        Lamb([p], **options)
    with pytest.raises(UsageError) as of_group:
        Lamb([{"params": [p], **options}])
    for message in (str(default.value), str(of_group.value)):
        assert message.startswith(f"Lamb got {received}")
        assert "\n" not in message


def test_sparse_gradients_and_complex_parameters_are_refused():
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3).to_sparse()
    with pytest.raises(UsageError, match="sparse gradient of shape \\(3,\\)"):
        Lamb([p]).step()
    z = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
    z.grad = torch.ones_like(z)
    with pytest.raises(UsageError, match="complex parameter"):
        Lamb([z]).step()
