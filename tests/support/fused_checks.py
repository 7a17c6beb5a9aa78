"""Checks of fused steps for the CPU (`test_fused.py`) and for a GPU (`fused_cuda_checks.py`)."""

from __future__ import annotations

import copy
import math

import torch
from hypothesis import strategies as st

from tests.support.devices import DEVICE, forbid_synchronization
from tests.support.fused_steps import (
    CHECKS,
    fused_and_foreach,
    give_gradients,
    layers,
    state_of,
    values,
)
from trustlens.optim import LAMB_VARIANTS, Lamb, Lars
from trustlens.recording.optimizers.direction import Stepped
from trustlens.recording.optimizers.own import lamb_direction, lars_direction
from trustlens.recording.statistics import SUMS, LayerStep
from trustlens.recording.statistics.reference import measure

SHAPES = [(6, 4), (5,), (), (1,), (16,), (0,), (33, 61), (2, 3, 5, 7), (1024,)]

RATES = st.sampled_from([0.0, 0.02, torch.tensor(0.02), torch.tensor([0.5])])

LAMB_OPTIONS = st.fixed_dictionaries(
    {
        "lr": RATES,
        "betas": st.sampled_from([(0.9, 0.999), (0.0, 0.99), (0.3, 0.0), (0.95, 0.5)]),
        "eps": st.sampled_from([1e-6, 1e-8, 1e-2, 1e-12]),
        "weight_decay": st.sampled_from([0.0, 0.01, 1.0]),
        "debias": st.sampled_from([True, False, "rate", "first"]),
        "decay": st.sampled_from(["inside", "first", "beside"]),
        "clip_ratio": st.sampled_from([None, (0.0, 10.0), (0.5, 0.6)]),
        "clip_weight_norm": st.sampled_from([None, 1.0]),
        "trust_coefficient": st.sampled_from([1.0, 0.02]),
        "ratio_eps": st.sampled_from([0.0, 0.1]),
        "always_adapt": st.booleans(),
        "unit_at_zero": st.booleans(),
        "max_grad_norm": st.sampled_from([None, 1.0, 1e9]),
    }
)

LARS_OPTIONS = st.fixed_dictionaries(
    {
        "lr": RATES,
        "momentum": st.sampled_from([0.0, 0.9]),
        "weight_decay": st.sampled_from([0.0, 0.01, 1.0]),
        "trust_coefficient": st.sampled_from([1.0, 0.001]),
        "norm": st.sampled_from(["sum", "combined"]),
        "eps": st.sampled_from([0.0, 0.1]),
        "always_adapt": st.booleans(),
    }
)

CONFIGURATIONS = st.one_of(
    st.tuples(st.just(Lamb), LAMB_OPTIONS), st.tuples(st.just(Lars), LARS_OPTIONS)
)

EXAMPLE_CONFIGURATIONS = [
    (Lamb, {"weight_decay": 0.01}),
    (Lamb, {"weight_decay": 0.01, "eps": 0.0}),
    *((Lamb, {"weight_decay": 0.1, **LAMB_VARIANTS[v]}) for v in ("apex", "pytorch_optimizer")),
    (Lars, {"weight_decay": 0.01}),
    (Lars, {"momentum": 0.0}),
]


def is_same(a, b):
    """Return whether tensors are equal, where NaN equals NaN."""
    return torch.equal(a, b) or torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


def to_cpu(state):
    return {name: value.cpu() for name, value in state.items()}


def check_steps(configuration, shapes, seed, dtype=torch.float32):
    """Compare each step with its formula and, in float32, with foreach."""
    kind, options = configuration
    params = layers(shapes, seed=seed % 1000, dtype=dtype)
    params[0].data.zero_()
    optimizer, foreach, others = fused_and_foreach(
        lambda p, **fused: kind(p, **options, **fused), params
    )
    for step in range(3):
        give_gradients(params, step)
        for p, other in zip(params, others, strict=True):
            other.data.copy_(p)  # single steps are compared, without accumulated differences
            other.grad = p.grad.cpu().clone()
            foreach.state[other] = to_cpu(state_of(optimizer, p))
        before = [(p.detach().clone(), state_of(optimizer, p)) for p in params]
        with forbid_synchronization():
            optimizer.step()
        foreach.step()
        for p, (w, state) in zip(params, before, strict=True):
            CHECKS[kind](w, p.grad, state, p, optimizer)
        found, expected = values(optimizer, params), values(foreach, others)
        assert found.keys() == expected.keys()
        for name, value in found.items() if dtype == torch.float32 else ():
            torch.testing.assert_close(value.cpu(), expected[name], rtol=1e-3, atol=1e-6)


EXTREME = [0.0, -0.0, 1.0, -3.0, 1e25, -1e25, 1e-25, 1e-40, 3e38, 2e19, 1e-20, math.inf, -math.inf]


def largest(values):
    return values.nan_to_num(0, 0, 0).abs().max().item()


def extreme_elements():
    """Return a strategy for lists of (weight, first gradient, second gradient)."""
    one = st.sampled_from([*EXTREME, math.nan, 1.0, 0.5])
    return st.lists(st.tuples(one, one, one), min_size=1, max_size=40)


def check_extreme_numbers(configuration, eps, elements):
    """Compare steps of extreme numbers with foreach."""
    kind, options = configuration
    options = {**options, "eps": eps}
    w, *grads = torch.tensor(elements).T.contiguous()
    params = [torch.nn.Parameter(w.to(DEVICE, copy=True))]
    optimizer, foreach, others = fused_and_foreach(
        lambda p, **fused: kind(p, **options, **fused), params
    )
    for grad in grads:
        params[0].grad, others[0].grad = grad.to(DEVICE, copy=True), grad.clone()
        others[0].data.copy_(params[0])
        before = largest(params[0].detach())
        foreach.state[others[0]] = to_cpu(state_of(optimizer, params[0]))
        with forbid_synchronization():
            optimizer.step()
        foreach.step()
        found, expected = values(optimizer, params), values(foreach, others)
        for name, value in found.items():
            scale = max(largest(expected[name]), before if name[0] == "weight" else 0)
            torch.testing.assert_close(
                value.cpu(), expected[name], rtol=2e-5, atol=1e-6 * scale + 1e-43, equal_nan=True
            )


def layer_steps(kind, optimizer, params, before):
    """Yield the steps of the parameters in the form that the reference measures."""
    for p, w in zip(params, before, strict=True):
        state, group = optimizer.state[p], optimizer.param_groups[0]
        grad = p.grad
        if "grad_divisor" in state:
            grad = (grad.float() / state["grad_divisor"]).to(grad.dtype)
        stepped = Stepped(group, state, grad, p.detach(), w, p.grad, None, optimizer)
        form = lamb_direction(stepped, group) if kind is Lamb else lars_direction(stepped)
        yield LayerStep(w, p.detach(), grad, form)


def assert_measured(measured, expected):
    """Assert relative errors of at most 2e-5; for inner products, relative to ‖a‖·‖b‖."""
    at = {name: i for i, name in enumerate(SUMS)}
    tolerance = 2e-5 * expected.abs()
    for name, a, b in (
        ("undecayed_dot_weight", "undecayed_squares", "weight_squares"),
        ("update_dot_weight", "update_squares", "weight_squares"),
        ("grad_dot_momentum", "grad_squares", "momentum_squares"),
    ):
        tolerance[:, at[name]] = 2e-5 * (expected[:, at[a]] * expected[:, at[b]]).sqrt()
    u, d = (expected[:, at[name]] for name in ("direction_squares", "undecayed_squares"))
    tolerance[:, at["direction_squares"]] += 1e-6 * (u * d).sqrt()  # d and λw may cancel in u
    same = (measured == expected) | ((measured - expected).abs() <= tolerance)
    same |= measured.isnan() & expected.isnan()
    assert same.all(), [(SUMS[j], measured[i, j], expected[i, j]) for i, j in (~same).nonzero()]


def check_sums(configuration, scales, seed, shapes=SHAPES, dtype=torch.float32):
    """Compare the sums with the reference."""
    kind, options = configuration
    params = layers([s for s in shapes if s != (0,)], scales[0], seed, dtype)
    optimizer = kind(params, fused=True, **options)
    optimizer.measures = True
    for step in range(3):
        give_gradients(params, step, scales[1])
        params[0].grad.view(-1)[0] = 0.0
        before = [p.detach().clone() for p in params]
        with forbid_synchronization():
            optimizer.step()
        ((stepped_params, sums),) = optimizer.measured
        assert all(a is b for a, b in zip(stepped_params, params, strict=True))
        assert_measured(sums, measure(list(layer_steps(kind, optimizer, params, before))))


def replace_data(optimizer, params):
    params[0].data = params[0].data.clone()


def transpose_data(optimizer, params):
    params[0].data = params[0].data.t()


def load_state(optimizer, params):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def clear_state(optimizer, params):
    optimizer.state.clear()


def clear_one_state(optimizer, params):
    del optimizer.state[params[1]]


def empty_last_state(optimizer, params):
    optimizer.state[params[2]].clear()


def replace_entry(optimizer, params):
    name = "exp_avg" if isinstance(optimizer, Lamb) else "momentum_buffer"
    optimizer.state[params[1]][name] = optimizer.state[params[1]][name] * 2


def move_entry(optimizer, params):
    for state in optimizer.state.values():
        for entry in state.values():
            entry.data = entry.data.clone()


def lose_gradient(optimizer, params):
    params[1].grad = None


def make_gradient_noncontiguous(optimizer, params):
    params[0].grad = params[0].grad.t().contiguous().t()


def give_a_parameter_as_gradient(optimizer, params):
    params[0].grad = torch.nn.Parameter(params[0].grad)


def add_group(optimizer, params):
    new = torch.nn.Parameter(params[0].new_ones(9))
    new.grad = params[0].new_ones(9)
    params.append(new)
    optimizer.add_param_group({"params": [new], "lr": 0.3})


def add_parameter(optimizer, params):
    new = torch.nn.Parameter(params[0].new_ones(4))
    new.grad = params[0].new_ones(4)
    params.append(new)
    optimizer.param_groups[0]["params"].append(new)


def reverse_parameters(optimizer, params):
    optimizer.param_groups[0]["params"].reverse()


def change_option(optimizer, params):
    name = "debias" if isinstance(optimizer, Lamb) else "norm"
    optimizer.param_groups[0][name] = "rate" if name == "debias" else "combined"


CHANGES = [
    empty_last_state,
    *(
        replace_data,
        transpose_data,
        load_state,
        clear_state,
        clear_one_state,
        replace_entry,
        move_entry,
    ),
    *(
        lose_gradient,
        make_gradient_noncontiguous,
        give_a_parameter_as_gradient,
        add_group,
        add_parameter,
        reverse_parameters,
        change_option,
    ),
]


def check_change(kind, change):
    """Compare steps with foreach when something changes between them."""
    params = layers([(6, 6), (5,), (33, 61)])
    optimizer, foreach, others = fused_and_foreach(
        lambda p, fused: kind(p, lr=0.1, weight_decay=0.01), params
    )
    foreach.param_groups[0]["fused"] = False
    foreach.defaults["fused"] = False
    for step in range(6):
        for each, its in ((optimizer, params), (foreach, others)):
            give_gradients(its, step)
            if step in (2, 3):
                change(each, its)
            each.step()
        for name, value in values(optimizer, params).items():
            torch.testing.assert_close(
                value.cpu(), values(foreach, others)[name], rtol=1e-5, atol=1e-6, msg=str(name)
            )


def check_swallowed_exactly(kind):
    """Updates are swallowed where d + λw underflows in float32, but not where it is 0."""
    options = {"eps": 1.0, "betas": (0.0, 0.0), "debias": False} if kind is Lamb else {}
    cancelling = -2.0 if kind is Lamb else -4.0  # for g = 1, d is 1/2 or 1
    weights, grads = [3.0, cancelling, cancelling, 1e-45], [1.0, 1.0, 1.0, 0.0]
    params = [torch.nn.Parameter(torch.tensor(weights, device=DEVICE).repeat(500))]
    optimizer = kind(params, lr=0.0, weight_decay=0.25, fused=True, **options)
    optimizer.measures = True
    params[0].grad = torch.tensor(grads, device=DEVICE).repeat(500)
    optimizer.step()
    assert optimizer.measured[0][1][0, SUMS.index("swallowed")] == 2 * 500
