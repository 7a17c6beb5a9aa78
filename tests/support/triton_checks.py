"""Compare the kernels with the reference; `test_triton_backend.py` runs this in a new process.

The environment of the process, read when Triton is imported, selects interpreter or GPU.
"""

from __future__ import annotations

import math
import os
from array import array

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from tests.support.devices import DEVICE, forbid_synchronization
from tests.support.layer_steps import (
    DTYPES,
    FORMS,
    ROUNDED_FORMS,
    assert_agree,
    assert_agree_except_reconstructed,
    make_step,
    step_arguments,
)
from trustlens.element_bins import ELEMENT_BUCKETS
from trustlens.recording.optimizers import Direction
from trustlens.recording.statistics import SUMS, LayerStep, reference
from trustlens.recording.statistics import triton_launch as launch
from trustlens.recording.statistics.elements import count_elements
from trustlens.recording.statistics.triton_backend import TritonBackend

MULTI = TritonBackend.if_possible(DEVICE)
EXAMPLES = int(os.environ.get("TRUSTLENS_EXAMPLES", "120"))
SHAPES = [(), (0,), (1,), (3, 5), (8, 1, 5, 5), (1024,), (2047,), (2049,)]


def measured(steps):
    with forbid_synchronization():
        return MULTI.measure(steps)


def normal(seed, shape=(3000,)):
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return made.to(DEVICE)


@settings(max_examples=EXAMPLES, deadline=None)
@given(arguments=step_arguments(SHAPES, [*FORMS, *ROUNDED_FORMS]))
def test_the_sums_agree_with_the_reference(arguments):
    step = make_step(**arguments)
    assert_agree_except_reconstructed(measured([step]), step)


def test_layers_of_several_dtypes_sizes_and_forms_together():
    steps, wide = [], (torch.float64,) * 4
    for i, (form, size) in enumerate(zip([*FORMS] * 2, [5, 0, 2049, 1, 700] * 4, strict=True)):
        dtypes = [wide, (torch.float32,) * 4, (torch.bfloat16,) * 4][i % 3]
        steps.append(make_step(seed=i, shape=(size,), dtypes=dtypes, scales=(0, 0, -1), form=form))
    steps = [step for step in steps if step.before is not None]
    odd = normal(7, (50,)).to(torch.float8_e4m3fn)
    steps.insert(3, LayerStep(odd, odd, None, None))
    assert_agree(measured(steps), steps)


def test_a_layer_of_many_chunks_and_one_with_unaligned_addresses():
    w, g, m = (normal(i, (2 * launch.CHUNK + 1500,)) for i in range(3))
    form = Direction(base=m, momentum=m, base_share=1.5, decay=0.1)
    steps = [
        LayerStep(w, w - 0.01 * g, g, form),
        LayerStep(w[1:900], w[3:902], g[5:904], Direction(grad_share=1.0)),
    ]
    sums = measured(steps)
    assert_agree(sums, steps)
    assert torch.equal(sums.nan_to_num(), measured(steps).nan_to_num())  # to the bit


@pytest.mark.parametrize("value", [0.3, 1e-3, 7.7])
def test_equal_numbers_whose_rounding_errors_have_the_same_sign(value):
    w = torch.full((launch.CHUNK,), value, device=DEVICE)
    step = LayerStep(w, w * 1.25, w, Direction(grad_share=1.0))
    (got,), (truth,) = measured([step]).cpu().numpy(), reference.measure([step]).cpu().numpy()
    known = ~np.isnan(truth)
    assert got[known] == pytest.approx(truth[known], rel=2e-6)


@pytest.mark.parametrize("size", [1e25, 1e-21, 1e-25])
def test_squares_out_of_the_range_of_float32(size):
    w = size * normal(1)
    for before in (w, None):
        form = Direction(grad_share=1.0, rate=0.125, momentum=w)
        steps = [LayerStep(before, 0.75 * w, w, form)]
        assert_agree(measured(steps), steps)


def test_terms_that_cancel():
    g = normal(1)
    x = g * (1 + 1e-6 * normal(2))
    v = torch.full_like(g, 0.3)
    steps = [
        LayerStep(g, 0.5 * g, g, Direction(grad_share=0.3, base=x, base_share=-0.3)),
        LayerStep(g, 0.5 * g, g, Direction(grad_share=0.3, base=x, base_share=-0.3, variance=v)),
        LayerStep(x, 0.5 * x, g, Direction(grad_share=0.3, decay=-0.3)),
        LayerStep(x, 0.5 * x, g, Direction(grad_share=0.3, weight_share=-0.3)),
    ]
    for step in steps:
        assert_agree(measured([step]), [step])


def test_weights_are_reconstructed_exactly():
    """With a decay factor that is not exact in float32, as in fused optimizers."""
    w, g, rate, decay = normal(1), normal(2), 1e-3, 0.0123
    after = (w.double() * (1 - rate * decay)).float()
    form = Direction(base=0 * g, base_share=1.0, rate=rate, decay=decay)
    steps = [LayerStep(None, after, g, form)]
    assert_agree(measured(steps), steps)
    assert_agree(measured(steps), [LayerStep(w, after, g, form)])


def test_swallowed_updates_are_counted_exactly():
    w = torch.ones(2000, device=DEVICE)
    tiny = torch.full((2000,), 1e-45, device=DEVICE)
    tiny[7] = 1.0
    cancelling = -0.01 * w
    steps = [
        LayerStep(w, w, tiny, Direction(grad_share=0.01)),
        LayerStep(w, w, w, Direction(grad_share=1.0, weight_share=-1.0)),
        LayerStep(w, w, w, Direction(update_share=-3.3, weight_share=-0.01, decay=0.01)),
        LayerStep(w, w, cancelling, Direction(grad_share=1.0, decay=0.01)),
    ]
    sums = measured(steps)[:, SUMS.index("swallowed")].tolist()
    assert sums == reference.measure(steps)[:, SUMS.index("swallowed")].tolist()
    assert sums[:3] == [2000, 0, 0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_elements_are_counted_with_the_sums(dtype):
    w, g = normal(1).double(), normal(2).double() * 1e-3
    g[:1100] = 0.0  # the first block contains zeros only
    g[1200:1205] = torch.tensor([1e-42, 1e30, -1e30, -0.0, 1e-30], dtype=torch.float64)
    w[5:9] = torch.tensor([math.inf, -math.inf, 1e35, -1e-41], dtype=torch.float64)
    w, g = w.to(dtype), g.to(dtype)
    after = (w.double() - g.double()).to(dtype)
    steps = [LayerStep(w, after, g, Direction(grad_share=1.0)), LayerStep(w, after, None, None)]
    with forbid_synchronization():
        sums, counts = MULTI.measure_and_count(steps)
    assert_agree(sums, steps)
    assert counts.dtype == torch.int64
    assert counts.shape == (2, 3, ELEMENT_BUCKETS)
    update = count_elements(after.float() - w.float())
    expected = torch.stack([count_elements(w), count_elements(g), update])
    if dtype != torch.float64:  # the conversion of NaN from float64 depends on the machine
        assert torch.equal(counts[0], expected)
    assert torch.equal(counts.sum(2), torch.tensor([[3000] * 3, [3000, 0, 3000]], device=DEVICE))
    finite = [*range(1020), *range(1024, 2044)]
    assert torch.equal(counts[0][:, finite], expected[:, finite])
    expected[1] = 0
    assert torch.equal(counts[1][:, finite], expected[:, finite])


def test_prepared_layers_are_measured_again_with_other_gradients_and_numbers(monkeypatch):
    uploads = []
    upload = launch.upload
    monkeypatch.setattr(launch, "upload", lambda *a: uploads.append(a) or upload(*a))
    w, m, grads = normal(1), normal(2), [normal(3), normal(4)]
    forms = [Direction(base=m, momentum=m, base_share=share, rate=0.1) for share in (1.0, 3.0)]
    after = w - 0.25 * m
    steps = [LayerStep(w, after, grads[0], forms[0]), LayerStep(None, after, None, forms[1])]
    prepared = MULTI.prepare(steps)
    counts = torch.zeros((2, 3, ELEMENT_BUCKETS), dtype=torch.int64, device=DEVICE)

    def again(given, numbers, places, **options):
        addresses = array("q", [0 if g is None else g.data_ptr() for g in given])
        uploads.clear()
        with forbid_synchronization():
            sums = prepared.measure(addresses, numbers, places, **options)
        of = [None if place < 0 else numbers[place] for place in places]
        done = [
            LayerStep(step.before, after, g, form)
            for step, g, form in zip(steps, given, of, strict=True)
        ]
        assert_agree(sums[:1], done[:1])
        if done[1].grad is None or done[1].direction is None:
            assert_agree(sums[1:], done[1:])
        return sums

    first = again([grads[0], None], forms, [0, 1])
    assert len(uploads) == 1
    assert torch.equal(again([grads[0], None], forms, [0, 1]).nan_to_num(), first.nan_to_num())
    assert not uploads
    again([grads[1], grads[0]], forms, [1, 0], counts=counts)
    assert len(uploads) == 1
    again([None, grads[0]], forms[:1], [0, -1])
    again([grads[1][1:2999].clone()[:0].new_zeros(3000), None], [], [-1, -1])
    assert counts[0, 0].equal(count_elements(w))


def test_numbers_that_are_tensors_on_the_device():
    w, m, g = normal(1), normal(2), normal(3)
    v = m.square()
    numbers = {"rate": 0.01, "base_share": 1.5, "variance_share": 1.25, "grad_share": 0.25}
    other = {"base": m, "momentum": m, "variance": v, "epsilon": 1e-8, "decay": 0.125}
    on_device = {name: torch.tensor(value, device=DEVICE) for name, value in numbers.items()}
    on_device["variance_share"] = on_device["variance_share"].double()
    after = w - 0.01 * g
    for before in (w, None):
        steps = [
            LayerStep(before, after, g, Direction(**on_device, **other)),
            LayerStep(w, after, g, Direction(**numbers, **other)),
        ]
        for rate in (0.01, 0.02):
            on_device["rate"].fill_(rate)
            assert_agree(measured(steps), steps)


def test_tensors_that_the_kernels_cannot_read_in_place_are_not_prepared():
    w = normal(1, (40, 50))
    assert MULTI.prepare([LayerStep(w, w, None, None)]) is not None
    assert MULTI.prepare([LayerStep(w.mT, w.mT, None, None)]) is None
    assert MULTI.prepare([LayerStep(w.to(torch.float8_e5m2), w, None, None)]) is None


def test_the_tables_on_the_device_are_reused_while_only_gradients_change():
    w = normal(1)
    measured([LayerStep(w, w, normal(2), None)])
    before = MULTI._prepared[1]
    measured([LayerStep(w, w, normal(3), None)])
    assert MULTI._prepared[1] is before
    measured([LayerStep(w, w[:2000], None, None)])
    assert MULTI._prepared[1] is not before
