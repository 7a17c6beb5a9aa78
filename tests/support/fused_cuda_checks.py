"""Tests of the Triton kernels for LAMB and LARS; `test_fused_cuda.py` runs them in a new process.

The environment of the process, read when Triton is imported, selects interpreter or GPU.
"""

from __future__ import annotations

import copy
import os
import weakref

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.devices import DEVICE, forbid_synchronization
from tests.support.fused_checks import (
    CHANGES,
    CONFIGURATIONS,
    EXAMPLE_CONFIGURATIONS,
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
from tests.support.fused_steps import give_gradients, layers, values
from trustlens.errors import UsageError
from trustlens.optim import Lamb, Lars, fused
from trustlens.optim import fused_cuda as cuda
from trustlens.recording.statistics import SUMS
from trustlens.recording.statistics.reference import measure

EXAMPLES = int(os.environ.get("TRUSTLENS_EXAMPLES", "1"))
HALF_DTYPES = [torch.float16, torch.bfloat16]  # the interpreter truncates to them
SHAPES = [(), (0,), (1,), (33, 61), (5,), (1024,), (7, 293)]
NO_UPDATE = {"lr": 0.0, "weight_decay": 0.0, "always_adapt": False, "unit_at_zero": False}


def test_the_kernels_are_used():
    assert fused._rows_class(DEVICE) is cuda.Rows


@given(configuration=CONFIGURATIONS, shapes=st.permutations(SHAPES), seed=st.integers(0))
@settings(max_examples=12 * EXAMPLES, deadline=None)
def test_each_step_agrees_with_its_formula_and_with_foreach(configuration, shapes, seed):
    check_steps(configuration, shapes[:4], seed)


@given(
    configuration=CONFIGURATIONS,
    shapes=st.permutations(SHAPES),
    seed=st.integers(0),
    dtype=st.sampled_from(HALF_DTYPES),
)
@example(  # clipped gradients, with v = g²
    configuration=(Lamb, {"betas": (0.3, 0.0), "max_grad_norm": 1.0, **NO_UPDATE}),
    shapes=SHAPES,
    seed=0,
    dtype=torch.bfloat16,
)
@settings(max_examples=10 * EXAMPLES, deadline=None)
def test_half_precision_is_stepped_in_float32_and_rounded_once(configuration, shapes, seed, dtype):
    kind, options = configuration  # an ε that avoids overflow of float16 where v is 0
    check_steps((kind, {**options, "eps": 0.01}), shapes[:4], seed, dtype)


@given(configuration=CONFIGURATIONS, eps=st.sampled_from([0.0, 1e-6]), elements=extreme_elements())
@settings(max_examples=50 * EXAMPLES, deadline=None)
def test_extreme_numbers_give_the_same_results_as_foreach(configuration, eps, elements):
    check_extreme_numbers(configuration, eps, elements)


@given(
    configuration=CONFIGURATIONS,
    shapes=st.permutations([s for s in SHAPES if s != (0,)]),
    scales=st.tuples(*(st.sampled_from([1.0, 1.0, 1e-12, 1e-25, 1e12, 0.0]) for _ in range(2))),
    seed=st.integers(0, 1000),
)
@settings(max_examples=10 * EXAMPLES, deadline=None)
def test_the_sums_agree_with_the_reference(configuration, shapes, scales, seed):
    check_sums(configuration, scales, seed, shapes[:4])


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float16, 1.0), (torch.bfloat16, 1e-3)])
@pytest.mark.parametrize(("kind", "options"), EXAMPLE_CONFIGURATIONS)
def test_the_sums_of_half_precision_agree_with_the_reference(kind, options, scale, dtype):
    check_sums((kind, options), (1.0, scale), 3, [(40, 30), (7,)], dtype)


@pytest.mark.parametrize(("kind", "options"), EXAMPLE_CONFIGURATIONS)
def test_layers_of_many_chunks_and_several_dtypes_and_unaligned_addresses(
    monkeypatch, kind, options
):
    monkeypatch.setattr(cuda, "CHUNK", 1024)
    monkeypatch.setattr(cuda, "_ROWS", 2)
    params = layers([(3 * 1024 + 500,), (1024,), (5,)])
    params += layers([(2100,), (30, 3)], dtype=torch.float16)
    params.append(torch.nn.Parameter(layers([(1260,)])[0].detach()[1:]))
    optimizer = kind(params, lr=0.1, fused=True, **options)
    optimizer.measures = True
    for step in range(2):
        give_gradients(params, step)
        odd = torch.zeros(1262, device=DEVICE)[1 + step :][:1259]
        params[5].grad = odd.copy_(params[5].grad)
        before = [p.detach().clone() for p in params]
        with forbid_synchronization():
            optimizer.step()
        ((stepped, sums),) = optimizer.measured
        assert all(a is b for a, b in zip(stepped, params, strict=True))
        assert sums.dtype == torch.float64
        assert sums.device.type == DEVICE.type
        assert_measured(sums, measure(list(layer_steps(kind, optimizer, params, before))))


@pytest.mark.parametrize(("kind", "options"), EXAMPLE_CONFIGURATIONS)
def test_results_do_not_depend_on_measuring(monkeypatch, kind, options):
    monkeypatch.setattr(cuda, "CHUNK", 1024)
    results = []
    for measures in (True, False):
        params = layers([(2500,), (7,), (), (0,)]) + layers([(1100,)], dtype=torch.float16)
        params[1].data.mul_(1e-30)
        optimizer = kind(params, lr=0.1, fused=True, **options)
        optimizer.measures = measures
        sums = []
        for step in range(2):
            give_gradients(params, step, 1e-28 if step else 1.0)
            optimizer.step()
            sums += [result for _, result in optimizer.measured]
        results.append((values(optimizer, params), sums))
    (found, sums), (unmeasured, none) = results
    assert all(is_same(value, unmeasured[name]) for name, value in found.items())
    assert (len(sums), none) == (2, [])


@pytest.mark.parametrize(("kind", "options"), EXAMPLE_CONFIGURATIONS)
def test_elements_that_are_not_finite_and_swallowed_updates_are_counted(kind, options):
    params = layers([(40,), (2049,), (3,), (37,)])
    optimizer = kind(params, lr=1e-9, fused=True, **options)
    optimizer.measures = True
    give_gradients(params, 0)
    params[0].grad[3], params[1].grad[2048], params[2].grad[:] = torch.nan, torch.inf, 1e25
    params[1].data[5] = torch.inf
    params[3].data[:] = 1e6
    params[3].data[::2] = 1.0
    before = [p.detach().clone() for p in params]
    optimizer.step()
    sums = optimizer.measured[0][1]
    expected = measure(list(layer_steps(kind, optimizer, params, before)))
    assert torch.equal(sums.isfinite(), expected.isfinite())
    for name in ("nonfinite", "zero_grad"):
        assert torch.equal(sums[:, SUMS.index(name)], expected[:, SUMS.index(name)])
    if options.get("max_grad_norm") is None:  # else divided by NaN
        assert sums[3, SUMS.index("swallowed")] > 0
        assert_measured(sums[2:], expected[2:])


@pytest.mark.parametrize("kind", [Lamb, Lars])
def test_updates_are_counted_as_swallowed_only_if_the_direction_is_not_zero(kind):
    check_swallowed_exactly(kind)


@pytest.mark.parametrize("change", CHANGES)
def test_cached_addresses_are_not_used_after_a_change(change):
    check_change(Lamb, change)


@pytest.mark.parametrize("decay", ["inside", "first"])
@pytest.mark.parametrize("kind", [Lamb, Lars])
def test_options_that_are_tensors_on_the_device(kind, decay):
    numbers = {"lr": 0.25, "weight_decay": 0.125, "eps": 2**-10}
    options = {"decay": decay, "max_grad_norm": 1.0} if kind is Lamb else {}
    on_device = {name: torch.tensor([value], device=DEVICE) for name, value in numbers.items()}
    results = []
    for given_numbers in (numbers, on_device):
        params = layers([(50, 30), (7,)])
        optimizer = kind(params, always_adapt=False, fused=True, **given_numbers, **options)
        if kind is Lamb and given_numbers is on_device:
            betas = (torch.tensor(0.5), torch.tensor(0.75).double())
            optimizer.param_groups[0]["betas"] = tuple(b.to(DEVICE) for b in betas)
        elif kind is Lamb:
            optimizer.param_groups[0]["betas"] = (0.5, 0.75)
        for step in range(3):
            give_gradients(params, step)
            with forbid_synchronization():
                optimizer.step()
        results.append(values(optimizer, params))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=2e-6, atol=1e-7, msg=str(name))


def test_tensors_the_kernels_cannot_read_are_stepped_with_foreach():
    kinds = (torch.float32, torch.bfloat16, torch.float64)
    plain, half, wide = (torch.nn.Parameter(torch.ones(4, 6, device=DEVICE).to(d)) for d in kinds)
    transposed = torch.nn.Parameter(torch.ones(6, 4, device=DEVICE).t())
    params = [wide, plain, transposed, half]
    optimizer = Lamb(params, lr=0.1)
    optimizer.measures = True
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    ((stepped, sums),) = optimizer.measured
    assert stepped[0] is plain
    assert stepped[1] is half
    assert sums.shape == (2, len(SUMS))
    assert not any(bool((p == 1).any()) for p in params)
    for p in (wide, transposed):
        with pytest.raises(UsageError, match="Lamb got fused=True and a parameter of torch"):
            Lamb([p], fused=True).step()


def test_parameters_without_a_gradient_do_not_change():
    params = layers([(3,), (4,), (5,)])
    optimizer = Lamb(params, fused=True)
    optimizer.measures = True
    for step in range(4):
        give_gradients(params, step)
        if step % 2:
            params[1].grad = None
        before = params[1].detach().clone()
        optimizer.step()
        assert torch.equal(params[1], before) == bool(step % 2)
        assert [p.numel() for p in optimizer.measured[0][0]] == ([3, 5] if step % 2 else [3, 4, 5])
    assert optimizer.state[params[1]]["step"].item() == 2
    for p in params:
        p.grad = None
    optimizer.step()
    assert optimizer.measured == []


@pytest.mark.parametrize("dtype", [torch.float32, *HALF_DTYPES])
@pytest.mark.parametrize("kind", [Lamb, Lars])
def test_a_restored_optimizer_continues_with_identical_results(kind, dtype):
    params = layers([(6, 4), (5,)], dtype=dtype)
    optimizer = kind(params, lr=0.1, fused=True)
    give_gradients(params, 0)
    optimizer.step()
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = kind(others, lr=0.1, fused=True)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, its in ((optimizer, params), (other, others)):
        give_gradients(its, 1)
        each.step()
    found, expected = values(other, others), values(optimizer, params)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_ratio_tensor_is_reused_and_no_reference_to_a_gradient_remains():
    params = layers([(3,), (4,)])
    optimizer = Lamb(params, fused=True)
    ratios = []
    for step in range(2):
        give_gradients(params, step)
        grad = weakref.ref(params[0].grad)
        optimizer.step()
        optimizer.zero_grad()
        assert grad() is None
        ratios.append(optimizer.state[params[0]]["trust_ratio"])
    assert ratios[0] is ratios[1]
    assert ratios[0].dtype == torch.float32
    assert ratios[0].device == params[0].device


def test_a_step_increments_the_version_of_the_weights_for_autograd():
    p = torch.nn.Parameter(torch.ones(3, device=DEVICE))
    loss = (p * p).sum()
    p.grad = torch.ones_like(p)
    Lamb([p], fused=True).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_foreach_is_used_while_a_graph_is_captured(monkeypatch):
    params = layers([(3,)])
    give_gradients(params, 0)
    optimizer = Lamb(params)
    optimizer.measures = True
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    optimizer.step()
    assert optimizer.measured == []
    monkeypatch.undo()
    optimizer.step()
    assert len(optimizer.measured) == 1


def test_kernels_that_give_wrong_results_are_not_used(monkeypatch, caplog):
    monkeypatch.setattr(cuda, "is_usable", cuda.is_usable.__wrapped__)
    monkeypatch.setattr(cuda, "all_true", lambda _: False)
    with caplog.at_level("INFO", "trustlens"):
        assert fused._rows_class.__wrapped__(DEVICE) is None
    assert "no fused step on" in caplog.text
