"""Compare the compiled steps of LAMB and LARS with float64 formulas and with foreach."""

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

from tests.support.fused_checks import (
    CHANGES,
    CONFIGURATIONS,
    EXAMPLE_CONFIGURATIONS,
    SHAPES,
    assert_measured,
    check_change,
    check_extreme_numbers,
    check_steps,
    check_sums,
    check_swallowed_exactly,
    extreme_elements,
    is_same,
    layer_steps,
)
from tests.support.fused_steps import give_gradients, layers, needs_compiler, values
from trustlens.errors import UsageError
from trustlens.optim import Lamb, Lars
from trustlens.recording.statistics import SUMS
from trustlens.recording.statistics.reference import measure

pytestmark = needs_compiler


@given(
    configuration=CONFIGURATIONS,
    shapes=st.lists(st.sampled_from(SHAPES), min_size=1),
    seed=st.integers(0),
)
@settings(max_examples=60, deadline=None)
def test_each_step_agrees_with_its_formula_and_with_foreach(configuration, shapes, seed):
    check_steps(configuration, shapes, seed)


@given(configuration=CONFIGURATIONS, eps=st.sampled_from([0.0, 1e-6]), elements=extreme_elements())
@settings(max_examples=300, deadline=None)
def test_extreme_numbers_give_the_same_results_as_foreach(configuration, eps, elements):
    check_extreme_numbers(configuration, eps, elements)


@given(
    configuration=CONFIGURATIONS,
    scales=st.tuples(*(st.sampled_from([1.0, 1.0, 1e-12, 1e-25, 1e12, 0.0]) for _ in range(2))),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_the_sums_agree_with_the_reference(configuration, scales, seed):
    check_sums(configuration, scales, seed)


@pytest.mark.parametrize(("kind", "options"), EXAMPLE_CONFIGURATIONS)
def test_results_do_not_depend_on_threads_or_measuring(kind, options):
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
                sums += [result for _, result in optimizer.measured]
            results.append((values(optimizer, params), sums))
    finally:
        torch.set_num_threads(threads)
    first, sums = results[0][0], results[1][1]
    for found, measured in results:
        assert all(is_same(value, first[name]) for name, value in found.items())
        assert len(measured) in (0, 3)
        assert all(map(is_same, measured, sums))


@pytest.mark.parametrize(("kind", "options"), EXAMPLE_CONFIGURATIONS)
def test_elements_that_are_not_finite_are_counted(kind, options):
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
        [1, 2] if options.get("max_grad_norm") is None else [40, 70_000]  # divided by NaN
    )
    expected = measure(list(layer_steps(kind, optimizer, params, before)))
    assert torch.equal(sums.isfinite(), expected.isfinite())


@pytest.mark.parametrize(("kind", "options"), EXAMPLE_CONFIGURATIONS)
def test_updates_lost_to_rounding_are_counted(kind, options):
    params = [torch.nn.Parameter(torch.full((37,), 1e6))]
    params[0].data[::2] = 1.0
    optimizer = kind(params, lr=1e-9, fused=True, **options)
    optimizer.measures = True
    give_gradients(params, 0)
    before = [p.detach().clone() for p in params]
    optimizer.step()
    expected = measure(list(layer_steps(kind, optimizer, params, before)))
    assert expected[0, SUMS.index("swallowed")] > 0
    assert_measured(optimizer.measured[0][1], expected)


@pytest.mark.parametrize("kind", [Lamb, Lars])
def test_updates_are_counted_as_swallowed_only_if_the_direction_is_not_zero(kind):
    check_swallowed_exactly(kind)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", [Lamb, Lars])
def test_cached_addresses_are_not_used_after_a_change(kind, change):
    check_change(kind, change)


def test_tensors_the_loop_cannot_read_are_stepped_with_foreach():
    plain, half, wide = (torch.nn.Parameter(torch.randn(4, 6).to(d)) for d in
                         (torch.float32, torch.bfloat16, torch.float64))  # fmt: skip
    transposed = torch.nn.Parameter(torch.randn(4, 6).t())
    params = [plain, half, wide, transposed]
    optimizer = Lamb(params, lr=0.1)
    optimizer.measures = True
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert [len(stepped) for stepped, _ in optimizer.measured] == [1]
    assert optimizer.measured[0][0][0] is plain
    assert not any(torch.equal(p, w) for p, w in zip(params, before, strict=True))
    for p in (half, wide, transposed):
        with pytest.raises(UsageError, match="Lamb got fused=True and a parameter of torch"):
            Lamb([p], fused=True).step()
    optimizer.measures = False
    optimizer.step()
    assert optimizer.measured == []


def test_the_list_of_parameters_is_reused_while_the_same_ones_have_a_gradient():
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


def test_no_reference_to_a_gradient_remains():
    params = layers([(3,), (4,)])
    optimizer = Lamb(params, fused=True)
    for step in range(2):
        give_gradients(params, step)
        grad = weakref.ref(params[0].grad)
        optimizer.step()
        optimizer.zero_grad()
        assert grad() is None


def test_a_step_increments_the_version_of_the_weights_for_autograd():
    p = torch.nn.Parameter(torch.ones(3))
    loss = (p * p).sum()
    p.grad = torch.ones(3)
    Lamb([p], fused=True).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("kind", [Lamb, Lars])
def test_pickled_copies_and_checkpoints_without_fused_continue(kind):
    params = layers([(6, 4), (5,)])
    optimizer = kind(params, lr=0.1)
    optimizer.measures = True
    give_gradients(params, 0)
    optimizer.step()
    other_params, other = pickle.loads(pickle.dumps((params, optimizer)))
    assert other.measured == []
    old = optimizer.state_dict()
    for group in old["param_groups"]:
        del group["fused"]
    optimizer.load_state_dict(copy.deepcopy(old))
    for each, its_params in ((optimizer, params), (other, other_params)):
        give_gradients(its_params, 1)
        each.step()
    assert all(map(torch.equal, params, other_params))
    assert optimizer.measured
    assert optimizer.param_groups[0]["fused"] is None


@pytest.mark.parametrize("kind", [Lamb, Lars])
def test_an_invalid_value_of_fused_is_refused(kind):
    with pytest.raises(UsageError, match="got fused='yes': give None, True or False"):
        kind(layers([(3,)]), fused="yes")


def test_without_a_compiler_foreach_is_used():
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
    message = (
        "got fused=True, and there is no C compiler here to build the fused step: install one, or"
    )
    assert done.stdout.count(message) == 2
