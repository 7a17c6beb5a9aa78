"""Compare LARS and its variants with independent float64 formulas."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from tests.support.fused_steps import FUSED, needs_compiler
from trustlens.errors import UsageError
from trustlens.optim import LARS_VARIANTS, Lars

LR, MOMENTUM, STEPS = 0.02, 0.9, 5


def norm(x):
    return float(np.sqrt((x * x).sum()))


# The trust ratio of one layer from its weights w, gradient g and decay lam.


def article(w, g, lam):
    return norm(w) / (norm(g) + lam * norm(w)) if norm(w) != 0 and norm(g) != 0 else 1.0


def paper(w, g, lam):
    adapted = norm(w) != 0 and norm(g) != 0
    return 0.001 * norm(w) / (norm(g) + lam * norm(w)) if adapted else 1.0


def timm(w, g, lam):
    adapted = norm(w) != 0 and norm(g) != 0 and lam != 0
    return 0.001 * norm(w) / (norm(g) + lam * norm(w) + 1e-8) if adapted else 1.0


def torch_optimizer(w, g, lam):
    adapted = norm(w) != 0 and norm(g) != 0 and lam != 0
    return 0.01 * norm(w) / (norm(g) + lam * norm(w) + 1e-8) if adapted else 1.0


def optax(w, g, lam):
    adapted = norm(w) != 0 and norm(g + lam * w) != 0
    return 0.001 * norm(w) / norm(g + lam * w) if adapted else 1.0


FORMULAS = {
    "article": article,
    "paper": paper,
    "timm": timm,
    "torch-optimizer": torch_optimizer,
    "optax": optax,
}


def problem(seed=0, steps=STEPS):
    """Return weights, and gradients of each step, by name; some are 0."""
    rng = np.random.default_rng(seed)
    shapes = {"matrix": (6, 4), "bias": (5,), "scalar": (), "zero": (3,), "idle": (3, 2)}

    def draw():
        return {
            n: rng.normal(size=s).astype(np.float32).astype(np.float64) for n, s in shapes.items()
        }

    weights, grads = draw(), [draw() for _ in range(steps)]
    weights["zero"] *= 0
    for step_grads in grads:
        step_grads["idle"] *= 0
    return weights, grads


def simulate(ratio, weights, grads, *, decay, momentum, rates=None):
    """Return, for each step, weights and ratios by name, computed with one of the ratios above."""
    w, buffers, trace = dict(weights), {}, []
    for i, step_grads in enumerate(grads):
        ratios = {}
        for name, g in step_grads.items():
            ratios[name] = ratio(w[name], g, decay)
            scaled = ratios[name] * (g + decay * w[name])
            buffers[name] = momentum * buffers.get(name, 0.0) + scaled
            w[name] = w[name] - (LR if rates is None else rates[i]) * buffers[name]
        trace.append((dict(w), ratios))
    return trace


def parameters(weights, dtype):
    return {n: torch.nn.Parameter(torch.tensor(w, dtype=dtype)) for n, w in weights.items()}


def step(optimizer, params, step_grads):
    for name, p in params.items():
        p.grad = torch.tensor(step_grads[name], dtype=p.dtype)
    optimizer.step()


@pytest.mark.parametrize(
    ("dtype", "fused"),
    [
        (torch.float64, None),
        (torch.float32, False),
        pytest.param(torch.float32, True, marks=needs_compiler),
    ],
)
@pytest.mark.parametrize("momentum", [0.0, MOMENTUM])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("case", LARS_VARIANTS)
def test_each_variant_agrees_with_its_formula(case, decay, momentum, dtype, fused):
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    weights, grads = problem()
    params = parameters(weights, dtype)
    optimizer = Lars(params.values(), LR, momentum, decay, fused=fused, **LARS_VARIANTS[case])
    expected = simulate(FORMULAS[case], weights, grads, decay=decay, momentum=momentum)
    for step_grads, (after, ratios) in zip(grads, expected, strict=True):
        step(optimizer, params, step_grads)
        for name, p in params.items():
            moved = p.detach().double().numpy()
            assert norm(moved - after[name]) <= tolerance * norm(after[name]), name
            state = optimizer.state[p]
            assert state["trust_ratio"].item() == pytest.approx(ratios[name], rel=2e-5), name
            assert state["trust_ratio"].dtype == torch.float32
            assert ("momentum_buffer" in state) == (momentum != 0)


def test_a_schedule_changes_a_learning_rate_that_is_a_tensor():
    weights, grads = problem()
    params = parameters(weights, torch.float64)
    lr = torch.tensor(LR, dtype=torch.float64)
    optimizer = Lars(params.values(), lr, MOMENTUM, 0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    for step_grads in grads:
        step(optimizer, params, step_grads)
        schedule.step()
    rates = [LR * 0.5 ** (i // 2) for i in range(STEPS)]
    after, _ = simulate(article, weights, grads, decay=0.1, momentum=MOMENTUM, rates=rates)[-1]
    for name, p in params.items():
        np.testing.assert_allclose(p.detach().numpy(), after[name], rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_optimizer_continues_with_identical_results(tmp_path, dtype):
    weights, grads = problem(steps=8)
    params = parameters(weights, dtype)
    optimizer = Lars(params.values(), LR, weight_decay=0.01)
    for step_grads in grads[:4]:
        step(optimizer, params, step_grads)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    others = {n: torch.nn.Parameter(p.detach().clone()) for n, p in params.items()}
    restored = Lars(others.values(), LR, weight_decay=0.01)
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


@pytest.mark.parametrize("fused", FUSED)
def test_a_closure_computes_loss_and_gradients(fused):
    p = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = Lars([p], lr=0.1, fused=fused)

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 25
    assert p.square().sum().item() < 25


def test_a_parameter_without_gradient_does_not_change():
    used, unused = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = Lars([used, unused], weight_decay=0.1)
    optimizer.step()
    used.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(unused, torch.ones(3))
    assert unused not in optimizer.state


@pytest.mark.parametrize("case", LARS_VARIANTS)
def test_a_step_does_not_synchronize(case):
    # a meta tensor has no values: reading one raises an error
    p = torch.nn.Parameter(torch.empty(3, 2, device="meta"))
    optimizer = Lars([p], weight_decay=0.1, **LARS_VARIANTS[case])
    for _ in range(2):
        p.grad = torch.empty_like(p)
        optimizer.step()
    assert optimizer.state[p]["trust_ratio"].device.type == "meta"


@pytest.mark.parametrize(
    ("options", "received"),
    [
        ({"lr": -1.0}, "lr=-1.0"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"weight_decay": float("inf")}, "weight_decay=inf"),
        ({"trust_coefficient": None}, "trust_coefficient=None"),
        ({"norm": "max"}, "norm='max'"),
        ({"eps": -1}, "eps=-1"),
        ({"always_adapt": 1}, "always_adapt=1"),
    ],
)
def test_an_option_out_of_range_is_refused_with_one_line(options, received):
    p = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(UsageError) as default:
        Lars([p], **options)
    with pytest.raises(UsageError) as of_group:
        Lars([{"params": [p], **options}])
    for message in (str(default.value), str(of_group.value)):
        assert message.startswith(f"Lars got {received}")
        assert "\n" not in message


def test_sparse_gradients_are_refused():
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3).to_sparse()
    with pytest.raises(UsageError, match="Lars got a sparse gradient"):
        Lars([p]).step()
