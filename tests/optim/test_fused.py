"""The compiled step of LAMB and LARS: against float64, against torch's operations, and its sums."""

from __future__ import annotations

import copy
import math
import os
import pickle
import subprocess
import sys
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optim.fused_steps import (
    CHECKS,
    give_gradients,
    layers,
    needs_compiler,
    state_of,
    twins,
    values,
)

from trustlens.errors import UsageError
from trustlens.optim import LAMB_VARIANTS, Lamb, Lars
from trustlens.recording.directions.form import Stepped
from trustlens.recording.directions.layerwise import lamb_direction, lars_direction
from trustlens.recording.statistics import SUMS, LayerStep
from trustlens.recording.statistics.reference import measure

pytestmark = needs_compiler

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

STEPPED = st.one_of(st.tuples(st.just(Lamb), LAMB_OPTIONS), st.tuples(st.just(Lars), LARS_OPTIONS))

SOME = [
    (Lamb, {"weight_decay": 0.01}),
    (Lamb, {"weight_decay": 0.01, "eps": 0.0}),
    *((Lamb, {"weight_decay": 0.1, **LAMB_VARIANTS[v]}) for v in ("apex", "pytorch_optimizer")),
    (Lars, {"weight_decay": 0.01}),
    (Lars, {"momentum": 0.0}),
]


def is_same(a, b):
    """Whether tensors have the same bits, but for those of NaN."""
    return torch.equal(a, b) or torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


@given(stepped=STEPPED, shapes=st.lists(st.sampled_from(SHAPES), min_size=1), seed=st.integers(0))
@settings(max_examples=60, deadline=None)
def test_each_step_is_its_formula_and_that_of_the_lists(stepped, shapes, seed):
    kind, options = stepped
    params = layers(shapes, seed=seed % 1000)
    params[0].data.zero_()
    optimizer, lists, others = twins(lambda p, **fused: kind(p, **options, **fused), params)
    for step in range(3):
        give_gradients(params, step)
        for p, other in zip(params, others, strict=True):
            other.data.copy_(p)  # the step is compared, not where many of them lead
            other.grad = p.grad.clone()
            lists.state[other] = state_of(optimizer, p)
        before = [(p.detach().clone(), state_of(optimizer, p)) for p in params]
        optimizer.step()
        lists.step()
        for p, (w, state) in zip(params, before, strict=True):
            CHECKS[kind](w, p.grad, state, p, optimizer)
        found, expected = values(optimizer, params), values(lists, others)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-6)


ODD = [0.0, -0.0, 1.0, -3.0, 1e25, -1e25, 1e-25, 1e-40, 3e38, 2e19, 1e-20, math.inf, -math.inf]


def largest(values):
    return values.nan_to_num(0, 0, 0).abs().max().item()


@given(
    stepped=STEPPED,
    eps=st.sampled_from([0.0, 1e-6]),
    elements=st.lists(
        st.tuples(*(st.sampled_from([*ODD, math.nan, 1.0, 0.5]) for _ in range(3))),
        min_size=1,
        max_size=40,
    ),
)
@settings(max_examples=300, deadline=None)
def test_odd_numbers_become_what_the_lists_make_of_them(stepped, eps, elements):
    kind, options = stepped
    options = {**options, "eps": eps}
    w, *grads = torch.tensor(elements).T.contiguous()
    params = [torch.nn.Parameter(w.clone())]
    optimizer, lists, others = twins(lambda p, **fused: kind(p, **options, **fused), params)
    for grad in grads:
        params[0].grad, others[0].grad = grad.clone(), grad.clone()
        others[0].data.copy_(params[0])
        before = largest(params[0].detach())
        lists.state[others[0]] = state_of(optimizer, params[0])
        optimizer.step()
        lists.step()
        found, expected = values(optimizer, params), values(lists, others)
        for name, value in found.items():
            scale = max(largest(expected[name]), before if name[0] == "weight" else 0)
            torch.testing.assert_close(
                value, expected[name], rtol=2e-5, atol=1e-6 * scale + 1e-43, equal_nan=True
            )


@pytest.mark.parametrize(("kind", "options"), SOME)
def test_bits_depend_on_neither_threads_nor_measuring(kind, options):
    shapes = [(1_000_003,), (300, 301), (7,), ()]
    results = []
    threads = torch.get_num_threads()
    try:
        for n, measures in ((1, False), (1, True), (2, True), (3, False), (3, True)):
            torch.set_num_threads(n)
            params = layers(shapes)
            params[2].data.mul_(1e-30)
            optimizer = kind(params, lr=0.1, fused=True, **options)
            optimizer.measures = measures
            sums = []
            for step in range(3):
                give_gradients(params, step, 1e-28 if step == 2 else 1.0)
                optimizer.step()
                sums += [made for _, made in optimizer.measured]
            results.append((values(optimizer, params), sums))
    finally:
        torch.set_num_threads(threads)
    first, sums = results[0][0], results[1][1]
    for found, measured in results:
        assert all(is_same(value, first[name]) for name, value in found.items())
        assert len(measured) in (0, 3)
        assert all(map(is_same, measured, sums))


def directions(kind, optimizer, params, before):
    for p, w in zip(params, before, strict=True):
        state, group = optimizer.state[p], optimizer.param_groups[0]
        grad = p.grad / state["grad_divisor"] if "grad_divisor" in state else p.grad
        stepped = Stepped(group, state, grad, p.detach(), w, p.grad, None, optimizer)
        form = lamb_direction(stepped, group) if kind is Lamb else lars_direction(stepped)
        yield LayerStep(w, p.detach(), grad, form)


def assert_measured(measured, expected):
    """Compare to 2e-5: sums of products of either sign to that of what they are made of."""
    at = {name: i for i, name in enumerate(SUMS)}
    tolerance = 2e-5 * expected.abs()
    for name, a, b in (
        ("undecayed_dot_weight", "undecayed_squares", "weight_squares"),
        ("update_dot_weight", "update_squares", "weight_squares"),
        ("grad_dot_momentum", "grad_squares", "momentum_squares"),
    ):
        tolerance[:, at[name]] = 2e-5 * (expected[:, at[a]] * expected[:, at[b]]).sqrt()
    u, d = (expected[:, at[name]] for name in ("direction_squares", "undecayed_squares"))
    tolerance[:, at["direction_squares"]] += 1e-6 * (u * d).sqrt()  # d and λw may cancel
    same = (measured == expected) | ((measured - expected).abs() <= tolerance)
    same |= measured.isnan() & expected.isnan()
    assert same.all(), [(SUMS[j], measured[i, j], expected[i, j]) for i, j in (~same).nonzero()]


@given(
    stepped=STEPPED,
    scales=st.tuples(*(st.sampled_from([1.0, 1.0, 1e-12, 1e-25, 1e12, 0.0]) for _ in range(2))),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_the_sums_are_those_of_the_reference(stepped, scales, seed):
    kind, options = stepped
    params = layers([s for s in SHAPES if s != (0,)], scales[0], seed)
    optimizer = kind(params, fused=True, **options)
    optimizer.measures = True
    for step in range(3):
        give_gradients(params, step, scales[1])
        params[0].grad[0] = 0.0
        before = [p.detach().clone() for p in params]
        optimizer.step()
        ((stepped_params, sums),) = optimizer.measured
        assert all(a is b for a, b in zip(stepped_params, params, strict=True))
        assert_measured(sums, measure(list(directions(kind, optimizer, params, before))))


@pytest.mark.parametrize(("kind", "options"), SOME)
def test_what_is_not_finite_is_counted(kind, options):
    params = layers([(40,), (70_000,), (3,)])
    optimizer = kind(params, fused=True, **options)
    optimizer.measures = True
    give_gradients(params, 0)
    params[0].grad[3], params[1].grad[69_999], params[2].grad[:] = math.nan, math.inf, 1e25
    params[1].data[5] = math.inf
    before = [p.detach().clone() for p in params]
    optimizer.step()
    sums = optimizer.measured[0][1]
    assert sums[:, SUMS.index("nonfinite")].tolist()[:2] == (
        [1, 2] if options.get("max_grad_norm") is None else [40, 70_000]  # clipped by NaN
    )
    expected = measure(list(directions(kind, optimizer, params, before)))
    assert torch.equal(sums.isfinite(), expected.isfinite())


@pytest.mark.parametrize(("kind", "options"), SOME)
def test_a_weight_too_large_to_move_is_counted(kind, options):
    params = [torch.nn.Parameter(torch.full((37,), 1e6))]
    params[0].data[::2] = 1.0
    optimizer = kind(params, lr=1e-9, fused=True, **options)
    optimizer.measures = True
    give_gradients(params, 0)
    before = [p.detach().clone() for p in params]
    optimizer.step()
    expected = measure(list(directions(kind, optimizer, params, before)))
    assert expected[0, SUMS.index("swallowed")] > 0
    assert_measured(optimizer.measured[0][1], expected)


def replace_data(optimizer, params):
    params[0].data = params[0].data.clone()


def turn_data(optimizer, params):
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


def turn_gradient(optimizer, params):
    params[0].grad = params[0].grad.t().contiguous().t()


def give_a_parameter_as_gradient(optimizer, params):
    params[0].grad = torch.nn.Parameter(params[0].grad)


def add_group(optimizer, params):
    new = torch.nn.Parameter(torch.ones(9))
    new.grad = torch.ones(9)
    params.append(new)
    optimizer.add_param_group({"params": [new], "lr": 0.3})


def add_parameter(optimizer, params):
    new = torch.nn.Parameter(torch.ones(4))
    new.grad = torch.ones(4)
    params.append(new)
    optimizer.param_groups[0]["params"].append(new)


def reverse_parameters(optimizer, params):
    optimizer.param_groups[0]["params"].reverse()


def change_option(optimizer, params):
    name = "debias" if isinstance(optimizer, Lamb) else "norm"
    optimizer.param_groups[0][name] = "rate" if name == "debias" else "combined"


CHANGES = [
    empty_last_state,
    *(replace_data, turn_data, load_state, clear_state, clear_one_state, replace_entry, move_entry),
    *(
        lose_gradient,
        turn_gradient,
        give_a_parameter_as_gradient,
        add_group,
        add_parameter,
        reverse_parameters,
        change_option,
    ),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", [Lamb, Lars])
def test_nothing_is_kept_that_has_changed(kind, change):
    params = layers([(6, 6), (5,), (33, 61)])
    optimizer, lists, others = twins(lambda p, fused: kind(p, lr=0.1, weight_decay=0.01), params)
    lists.param_groups[0]["fused"] = False
    lists.defaults["fused"] = False
    for step in range(6):
        for each, its in ((optimizer, params), (lists, others)):
            give_gradients(its, step)
            if step in (2, 3):
                change(each, its)
            each.step()
        for name, value in values(optimizer, params).items():
            torch.testing.assert_close(
                value, values(lists, others)[name], rtol=1e-5, atol=1e-6, msg=str(name)
            )


def test_what_it_cannot_read_is_stepped_by_the_lists():
    plain, half, wide = (torch.nn.Parameter(torch.randn(4, 6).to(d)) for d in
                         (torch.float32, torch.bfloat16, torch.float64))  # fmt: skip
    turned = torch.nn.Parameter(torch.randn(4, 6).t())
    params = [plain, half, wide, turned]
    optimizer = Lamb(params, lr=0.1)
    optimizer.measures = True
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert [len(stepped) for stepped, _ in optimizer.measured] == [1]
    assert optimizer.measured[0][0][0] is plain
    assert not any(torch.equal(p, w) for p, w in zip(params, before, strict=True))
    for p in (half, wide, turned):
        with pytest.raises(UsageError, match="Lamb got fused=True and a parameter of torch"):
            Lamb([p], fused=True).step()
    optimizer.measures = False
    optimizer.step()
    assert optimizer.measured == []


def test_the_list_of_layers_is_the_same_while_they_are():
    params = layers([(3,), (4,), (5,)])
    optimizer = Lamb(params)
    optimizer.measures = True
    seen = []
    for step in range(6):
        give_gradients(params, step)
        if step % 2:
            params[1].grad = None
        optimizer.step()
        seen.append(optimizer.measured[0][0])
    assert seen[0] is seen[2] is seen[4]
    assert [len(each) for each in seen] == [3, 2] * 3
    assert [p.numel() for p in seen[1]] == [3, 5]
    assert optimizer.state[params[1]]["step"].item() == 3


def test_gradients_are_let_go():
    params = layers([(3,), (4,)])
    optimizer = Lamb(params, fused=True)
    for step in range(2):
        give_gradients(params, step)
        grad = weakref.ref(params[0].grad)
        optimizer.step()
        optimizer.zero_grad()
        assert grad() is None


def test_the_weights_version_moves_as_autograd_must_know():
    p = torch.nn.Parameter(torch.ones(3))
    loss = (p * p).sum()
    p.grad = torch.ones(3)
    Lamb([p], fused=True).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("kind", [Lamb, Lars])
def test_copies_and_old_checkpoints_go_on(kind):
    params = layers([(6, 4), (5,)])
    optimizer = kind(params, lr=0.1)
    optimizer.measures = True
    give_gradients(params, 0)
    optimizer.step()
    their_params, other = pickle.loads(pickle.dumps((params, optimizer)))
    assert other.measured == []
    old = optimizer.state_dict()
    for group in old["param_groups"]:
        del group["fused"]
    optimizer.load_state_dict(copy.deepcopy(old))
    for each, its in ((optimizer, params), (other, their_params)):
        give_gradients(its, 1)
        each.step()
    assert all(map(torch.equal, params, their_params))
    assert optimizer.measured
    assert optimizer.param_groups[0]["fused"] is None


@pytest.mark.parametrize("kind", [Lamb, Lars])
def test_a_bad_choice_is_told(kind):
    with pytest.raises(UsageError, match="got fused='yes': give None, True or False"):
        kind(layers([(3,)]), fused="yes")


def test_without_a_compiler_the_lists_step():
    program = """
import torch
from trustlens.errors import UsageError
from trustlens.optim import Lamb, Lars
for kind in (Lamb, Lars):
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = kind([p], lr=0.1)
    optimizer.measures = True
    optimizer.step()
    assert not torch.equal(p, torch.ones(3)) and optimizer.measured == []
    try:
        kind([p], fused=True)
    except UsageError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "CC": "false"},
        capture_output=True,
        text=True,
        check=True,
    )
    told = "got fused=True, and there is no C compiler here to build its loop: install one, or"
    assert done.stdout.count(told) == 2
