"""LAMB against float64 formulas, one for each way of writing it, that share no code with it."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trustlens.errors import UsageError
from trustlens.optim import LAMB_VARIANTS, Lamb

BETA1, BETA2, EPS, LR = 0.9, 0.99, 1e-6, 0.02
STEPS = 5


def ratio_or_one(above, below):
    return above / below if above != 0 and below != 0 else 1.0


def norm(x):
    return float(np.sqrt((x * x).sum()))


@dataclass
class Adam:
    """One layer's moving averages after its t-th gradient, with the rate and the decay."""

    m: np.ndarray
    v: np.ndarray
    t: int
    eta: float
    lam: float

    @property
    def c1(self):
        return 1 - BETA1**self.t

    @property
    def c2(self):
        return 1 - BETA2**self.t

    @property
    def debiased(self):
        return (self.m / self.c1) / (np.sqrt(self.v / self.c2) + EPS)

    @property
    def plain(self):
        return self.m / (np.sqrt(self.v) + EPS)


# Each takes the weights and returns the new ones and the ratio.


def article(w, a):
    u = a.debiased + a.lam * w
    r = min(ratio_or_one(norm(w), norm(u)), 10.0)
    return w - a.eta * r * u, r


def pytorch_lamb(w, a):
    u = a.plain + a.lam * w
    r = ratio_or_one(min(norm(w), 10.0), norm(u))
    return w - a.eta * r * u, r


def torch_optimizer_debiased(w, a):
    u = a.plain + a.lam * w
    r = ratio_or_one(min(norm(w), 10.0), norm(u))
    return w - a.eta * np.sqrt(a.c2) / a.c1 * r * u, r


def kozistr(w, a):
    w = w - a.eta * a.lam * w
    r1, r2 = min(norm(w), 10.0), norm(a.plain)
    r = r1 / (r2 + EPS) if r1 != 0 and r2 != 0 else 1.0
    return w - a.eta / a.c1 * r * a.plain, r


def apex(w, a):
    u = a.debiased + a.lam * w
    r = ratio_or_one(norm(w), norm(u)) if a.lam != 0 else 1.0
    return w - a.eta * r * u, r


def apex_nvlamb(w, a):
    u = a.debiased + a.lam * w
    r = ratio_or_one(norm(w), norm(u))
    return w - a.eta * r * u, r


def deepspeed(w, a):
    u = a.plain + a.lam * w
    r1, r2 = norm(w), norm(u)
    r = min(max(r1 / r2, 0.01), 10.0) if r1 != 0 and r2 != 0 else 1.0
    return w - a.eta * np.sqrt(a.c2) / a.c1 * r * u, r


def timm_trust_clip(w, a):
    u = a.debiased + a.lam * w
    r = min(ratio_or_one(norm(w), norm(u)), 1.0) if a.lam != 0 else 1.0
    return w - a.eta * r * u, r


def timm_decoupled(w, a):
    w = w * (1 - a.eta * a.lam)
    r = ratio_or_one(norm(w), norm(a.debiased)) if a.lam != 0 else 1.0
    return w - a.eta * r * a.debiased, r


def bitsandbytes(w, a, max_unorm=1.0):
    r1, r2 = max_unorm * norm(w), norm(a.debiased)
    r = r1 / r2 if r2 > r1 else 1.0
    return (1 - a.eta * a.lam) * w - a.eta * r * a.debiased, r


def bitsandbytes_half(w, a):
    return bitsandbytes(w, a, max_unorm=0.5)


def optax(w, a):
    u = a.debiased + a.lam * w
    r = ratio_or_one(norm(w), norm(u))
    return w - a.eta * r * u, r


V = LAMB_VARIANTS
CASES = {
    "article": (article, V["article"]),
    "pytorch-lamb": (pytorch_lamb, V["pytorch-lamb"]),
    "torch-optimizer": (pytorch_lamb, V["torch-optimizer"]),
    "torch-optimizer, debias": (
        torch_optimizer_debiased,
        {**V["torch-optimizer"], "debias": "rate"},
    ),
    "pytorch_optimizer": (kozistr, V["pytorch_optimizer"]),
    "apex": (apex, V["apex"]),
    "apex, use_nvlamb": (apex_nvlamb, {**V["apex"], "always_adapt": True}),
    "deepspeed": (deepspeed, V["deepspeed"]),
    "timm": (apex, V["timm"]),
    "timm, trust_clip": (timm_trust_clip, {**V["timm"], "clip_ratio": (0.0, 1.0)}),
    "timm, decoupled_decay": (timm_decoupled, {**V["timm"], "decay": "first"}),
    "bitsandbytes": (bitsandbytes, V["bitsandbytes"]),
    "bitsandbytes, max_unorm": (
        bitsandbytes_half,
        {**V["bitsandbytes"], "trust_coefficient": 0.5},
    ),
    "optax": (optax, V["optax"]),
    "tensorflow-addons": (optax, V["tensorflow-addons"]),
}

# A matrix, a bias, a scalar, weights of zero, weights so large that r passes 10 and ‖w‖ passes
# 10, weights so small that r falls below 0.01, and a layer whose gradients are 0.
SCALES = {"matrix": 1, "bias": 0.3, "scalar": 2, "zero": 0, "large": 60, "small": 1e-3, "idle": 1}
SHAPES = {"matrix": (6, 4), "bias": (5,), "scalar": ()}


def problem(seed=0, steps=STEPS):
    """Weights by name, and for each step gradients by name, in float32 values held as float64."""
    rng = np.random.default_rng(seed)
    weights = {
        name: (scale * rng.normal(size=SHAPES.get(name, (3, 5)))).astype(np.float32)
        for name, scale in SCALES.items()
    }
    weights["zero"][:] = 0
    grads = [
        {name: rng.normal(size=w.shape).astype(np.float32) for name, w in weights.items()}
        for _ in range(steps)
    ]
    for of_step in grads:
        of_step["idle"][...] = 0
    wide = {name: w.astype(np.float64) for name, w in weights.items()}
    return wide, [{name: g.astype(np.float64) for name, g in of_step.items()} for of_step in grads]


def simulate(formula, weights, grads, decay, *, max_grad_norm=None, rates=None):
    """Run one of the formulas above; return, for each step, weights and ratios by name."""
    w = {name: value.copy() for name, value in weights.items()}
    m = {name: np.zeros_like(value) for name, value in weights.items()}
    v = {name: np.zeros_like(value) for name, value in weights.items()}
    t = dict.fromkeys(weights, 0)
    trace = []
    for i, of_step in enumerate(grads):
        total = np.sqrt(sum((g * g).sum() for g in of_step.values()))
        divisor = 1.0 if max_grad_norm is None else max(1.0, total / max_grad_norm)
        ratios = {}
        for name, g in of_step.items():
            t[name] += 1
            m[name] = BETA1 * m[name] + (1 - BETA1) * g / divisor
            v[name] = BETA2 * v[name] + (1 - BETA2) * (g / divisor) ** 2
            adam = Adam(m[name], v[name], t[name], LR if rates is None else rates[i], decay)
            w[name], ratios[name] = formula(w[name], adam)
        trace.append((dict(w), ratios))
    return trace


def parameters(weights, dtype):
    return {n: torch.nn.Parameter(torch.tensor(w, dtype=dtype)) for n, w in weights.items()}


def step(optimizer, params, of_step):
    for name, p in params.items():
        p.grad = torch.tensor(of_step[name], dtype=p.dtype) if name in of_step else None
    optimizer.step()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("case", CASES)
def test_each_variant_is_its_formula(case, decay, dtype, tolerance):
    formula, options = CASES[case]
    weights, grads = problem()
    params = parameters(weights, dtype)
    optimizer = Lamb(params.values(), LR, (BETA1, BETA2), eps=EPS, weight_decay=decay, **options)
    bound = options.get("max_grad_norm")
    expected = simulate(formula, weights, grads, decay, max_grad_norm=bound)
    for of_step, (after, ratios) in zip(grads, expected, strict=True):
        step(optimizer, params, of_step)
        for name, p in params.items():
            moved = p.detach().double().numpy()
            # relative to the layer: an element near 0 keeps the rounding of the others' size
            assert norm(moved - after[name]) <= tolerance * max(norm(after[name]), LR), name
            applied = optimizer.state[p]["trust_ratio"]
            assert applied.dtype == torch.float32
            assert applied.shape == ()
            assert applied.item() == pytest.approx(ratios[name], rel=2e-5), name


def test_the_problem_reaches_the_conventions():
    weights, grads = problem()
    _, ratios = simulate(article, weights, grads, 0.0)[0]
    assert ratios["zero"] == 1  # r₁ = 0
    assert ratios["idle"] == 1  # r₂ = 0
    assert ratios["large"] == 10
    _, unclipped = simulate(optax, weights, grads, 0.0)[0]
    assert unclipped["large"] > 10
    assert unclipped["small"] < 0.01


def test_every_package_of_the_table_is_tested():
    assert set(LAMB_VARIANTS) <= set(CASES)


@given(
    shape=st.lists(st.integers(1, 4), max_size=4).map(tuple),
    steps=st.integers(1, 6),
    decay=st.sampled_from([0.0, 0.01, 1.0]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=25, deadline=None)
def test_any_shape_and_length(shape, steps, decay, seed):
    rng = np.random.default_rng(seed)
    weights = {"w": rng.normal(size=shape)}
    grads = [{"w": rng.normal(size=shape)} for _ in range(steps)]
    params = parameters(weights, torch.float64)
    optimizer = Lamb(params.values(), LR, (BETA1, BETA2), eps=EPS, weight_decay=decay)
    for of_step in grads:
        step(optimizer, params, of_step)
    after, ratios = simulate(article, weights, grads, decay)[-1]
    np.testing.assert_allclose(params["w"].detach().numpy(), after["w"], rtol=1e-9, atol=1e-12)
    assert optimizer.state[params["w"]]["trust_ratio"].item() == pytest.approx(ratios["w"])


def test_the_ratio_of_a_large_layer_is_exact():
    # float32 summed in one go would be off by 1e-5 here
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(1_000_000))
    weight, grad = p.detach().double().numpy(), torch.randn(1_000_000)
    optimizer = Lamb([p])
    p.grad = grad
    optimizer.step()
    g = grad.double().numpy()
    direction = g / (np.abs(g) + 1e-6)
    expected = norm(weight) / norm(direction)
    assert optimizer.state[p]["trust_ratio"].item() == pytest.approx(expected, rel=5e-7)


def test_groups_keep_their_options():
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
    for of_step in grads:
        step(optimizer, params, of_step)
    a, _ = simulate(article, weights, grads, 0.1)[-1]
    b, _ = simulate(optax, weights, grads, 0.0, rates=[0.5] * STEPS)[-1]
    for name, p in params.items():
        expected = (a if name in first else b)[name]
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-9, err_msg=name)


def test_a_gradient_bound_counts_every_group():
    weights, grads = problem()
    params = parameters(weights, torch.float64)
    names = list(params)
    optimizer = Lamb(
        [{"params": [params[n]]} for n in names], LR, (BETA1, BETA2), eps=EPS, max_grad_norm=1.0
    )
    step(optimizer, params, grads[0])
    total = np.sqrt(sum((g * g).sum() for g in grads[0].values()))
    for name, p in params.items():
        assert torch.equal(p.grad, torch.tensor(grads[0][name]))  # left as it is
        assert optimizer.state[p]["grad_divisor"].item() == pytest.approx(total, rel=1e-6)
        np.testing.assert_allclose(
            optimizer.state[p]["exp_avg"], (1 - BETA1) * grads[0][name] / total, rtol=1e-6
        )


def test_a_layer_counts_its_own_steps():
    weights, grads = problem()
    params = parameters(weights, torch.float64)
    optimizer = Lamb(params.values(), LR, (BETA1, BETA2), eps=EPS)
    for i, of_step in enumerate(grads):
        step(optimizer, params, of_step if i % 2 == 0 else {"bias": of_step["bias"]})
    always, _ = simulate(article, weights, grads, 0.0)[-1]
    sometimes, _ = simulate(article, weights, grads[::2], 0.0)[-1]
    assert optimizer.state[params["bias"]]["step"].item() == STEPS
    assert optimizer.state[params["matrix"]]["step"].item() == len(grads[::2])
    np.testing.assert_allclose(params["bias"].detach().numpy(), always["bias"], rtol=1e-9)
    np.testing.assert_allclose(params["matrix"].detach().numpy(), sometimes["matrix"], rtol=1e-9)


def test_a_parameter_without_gradient_is_left_alone():
    used, unused = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = Lamb([used, unused], max_grad_norm=1.0)
    optimizer.step()  # nothing has a gradient yet
    used.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(unused, torch.ones(3))
    assert unused not in optimizer.state


@pytest.mark.parametrize("case", ["article", "pytorch_optimizer", "bitsandbytes"])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_the_rate_may_be_a_tensor(case, shape):
    weights, grads = problem()
    options = {**LAMB_VARIANTS[case], "weight_decay": 0.1}
    as_number, as_tensor = (parameters(weights, torch.float64) for _ in range(2))
    lr = torch.full(shape, LR, dtype=torch.float64)
    optimizers = Lamb(as_number.values(), LR, **options), Lamb(as_tensor.values(), lr, **options)
    for of_step in grads:
        step(optimizers[0], as_number, of_step)
        step(optimizers[1], as_tensor, of_step)
    for name in weights:
        torch.testing.assert_close(as_tensor[name], as_number[name], rtol=1e-12, atol=0)


def test_a_schedule_moves_the_rate():
    weights, grads = problem()
    params = parameters(weights, torch.float64)
    optimizer = Lamb(params.values(), LR, (BETA1, BETA2), eps=EPS)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    for of_step in grads:
        step(optimizer, params, of_step)
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
@pytest.mark.parametrize("options", [{}, LAMB_VARIANTS["timm"], {"decay": "first"}])
def test_a_restored_optimizer_goes_on_with_the_same_bits(tmp_path, dtype, options):
    weights, grads = problem(steps=8)
    options = {"lr": LR, "weight_decay": 0.01, **options}
    params = parameters(weights, dtype)
    optimizer = Lamb(params.values(), **options)
    for of_step in grads[:4]:
        step(optimizer, params, of_step)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    others = {n: torch.nn.Parameter(p.detach().clone()) for n, p in params.items()}
    restored = Lamb(others.values(), **options)
    restored.load_state_dict(torch.load(tmp_path / "state.pt"))
    cloned_params, cloned = copy.deepcopy((params, optimizer))
    for of_step in grads[4:]:
        step(optimizer, params, of_step)
        step(restored, others, of_step)
        step(cloned, cloned_params, of_step)
    for name, p in params.items():
        for other, its in ((others[name], restored), (cloned_params[name], cloned)):
            assert torch.equal(p, other)
            for key, value in optimizer.state[p].items():
                assert torch.equal(value, its.state[other][key]), key


def test_half_precision_steps_in_float32_and_rounds_once():
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
        # half a unit in the last of 8 bits, and what float32 adds to it
        np.testing.assert_allclose(p.detach().double().numpy(), after, rtol=2**-8, err_msg=name)


@pytest.mark.parametrize("case", LAMB_VARIANTS)
def test_nothing_waits_for_the_device(case):
    # a meta tensor has no values: whatever asked for one would raise
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
def test_a_bad_option_is_told_in_one_line(options, received):
    p = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(UsageError) as default:
        Lamb([p], **options)
    with pytest.raises(UsageError) as of_group:
        Lamb([{"params": [p], **options}])
    for told in (str(default.value), str(of_group.value)):
        assert told.startswith(f"Lamb got {received}")
        assert "\n" not in told


def test_gradients_it_cannot_use_are_refused():
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3).to_sparse()
    with pytest.raises(UsageError, match="sparse gradient of shape \\(3,\\)"):
        Lamb([p]).step()
    z = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
    z.grad = torch.ones_like(z)
    with pytest.raises(UsageError, match="complex parameter"):
        Lamb([z]).step()
