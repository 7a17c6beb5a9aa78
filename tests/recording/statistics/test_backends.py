"""Every backend against the reference, and the reference against numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.compiled import measure_compiled, needs_compiler
from trustlens.element_bins import ELEMENT_BUCKETS, element_counts
from trustlens.recording.optimizers import Direction
from trustlens.recording.statistics import SUMS, LayerStep, reference, torch_backend
from trustlens.recording.statistics.elements import count_elements

MEASURES = [
    pytest.param(reference.measure, id="reference"),
    pytest.param(torch_backend.TorchBackend().measure, id="portable"),
    pytest.param(measure_compiled, id="compiled", marks=needs_compiler),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def _step(
    seed: int, shape: tuple[int, ...], dtype: torch.dtype, form: int, scale: float
) -> LayerStep:
    make = torch.Generator().manual_seed(seed)

    def normal() -> torch.Tensor:
        return (torch.randn(shape, generator=make, dtype=torch.float64) * scale).to(dtype)

    m, v = normal(), normal().square()
    forms = [
        None,
        Direction(base=m, momentum=m, variance=v, base_share=1.5, variance_share=1.2, epsilon=1e-8),
        Direction(base=m, momentum=m, variance=v, base_share=1.0, epsilon=1e-3, decay=0.1),
        # Coefficients that are exact in binary: terms that cancel do so in any order.
        Direction(base=m, momentum=m, grad_share=1.0, base_share=0.875, weight_share=2.0**-7),
        Direction(grad_share=1.0, decay=2.0**-7),
    ]
    w = normal()
    after = (w.double() + 1e-3 * normal().double()).to(dtype)
    return LayerStep(w, after, None if form == 0 else normal(), forms[form])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shape=st.sampled_from([(), (0,), (1,), (3, 5), (64, 1, 5, 5), (16383,), (16385,), (3, 20000)]),
    dtype=st.sampled_from(DTYPES),
    form=st.integers(0, 4),
    scale=st.sampled_from([1.0, 1e-3, 1e3]),
)
def test_the_torch_backend_agrees_with_the_reference(
    seed: int, shape: tuple[int, ...], dtype: torch.dtype, form: int, scale: float
) -> None:
    steps = [_step(seed, shape, dtype, form, scale), _step(seed + 1, (7,), dtype, 1, scale)]
    torch.testing.assert_close(
        torch_backend.TorchBackend().measure(steps),
        reference.measure(steps),
        rtol=1e-10,
        atol=1e-10,
        equal_nan=True,
    )


@pytest.mark.parametrize("measure", MEASURES)
def test_a_division_by_zero_is_infinite(measure) -> None:
    """The result must not be NaN if the terms have different signs."""
    w, g = torch.tensor([1.0, -1.0, 2.0]), torch.tensor([-2.0, 3.0, 1.0])
    form = Direction(grad_share=1.0, weight_share=1.0, variance=torch.tensor([0.0, 0.0, 1.0]))
    sums = dict(zip(SUMS, measure([LayerStep(w, w - 1, g, form)])[0].tolist(), strict=True))
    assert sums["direction_squares"] == sums["undecayed_squares"] == math.inf
    assert sums["undecayed_dot_weight"] == -math.inf


@pytest.mark.parametrize("measure", MEASURES)
def test_sums_computed_by_hand(measure) -> None:
    step = LayerStep(
        before=torch.tensor([3.0, -4.0, 0.5]),
        after=torch.tensor([2.0, -4.0, 0.5]),
        grad=torch.tensor([1.0, 0.0, 2.0]),
        direction=Direction(
            base=torch.tensor([2.0, 0.0, 1.0]),
            momentum=torch.tensor([2.0, 0.0, 1.0]),
            variance=torch.tensor([4.0, 0.0, 1.0]),
            base_share=2.0,
            variance_share=4.0,
            epsilon=1.0,
            decay=0.1,
        ),
    )
    # d = [4/5, 0, 2/3], u = d + 0.1·w = [1.1, −0.4, 0.71667], Δw = [−1, 0, 0]
    expected = {
        "weight_squares": 25.25,
        "direction_squares": 1.21 + 0.16 + (2 / 3 + 0.05) ** 2,
        "update_squares": 1.0,
        "grad_squares": 5.0,
        "undecayed_squares": 0.64 + 4 / 9,
        "undecayed_dot_weight": 2.4 + 1 / 3,
        "update_dot_weight": -3.0,
        "grad_dot_momentum": 4.0,
        "momentum_squares": 5.0,
        "variance_sum": 20.0,
        "surprise_sum": 1 / 16 + 0.0 + 4 / 4,
        "nonfinite": 0,
        "zero_grad": 1,
        "swallowed": 2,
        "update_max": 1.0,
        "grad_max": 2.0,
    }
    row = measure([step])[0]
    for name, value in zip(SUMS, row.tolist(), strict=True):
        assert value == pytest.approx(expected[name], rel=1e-7), name


@pytest.mark.parametrize("measure", MEASURES)
def test_elements_that_are_not_finite_are_counted_and_affect_the_sums(measure) -> None:
    w, g = torch.ones(20000), torch.ones(20000)
    w[3], g[3], g[4], g[19999] = math.inf, math.nan, -math.inf, math.nan
    row = dict(
        zip(SUMS, measure([LayerStep(w, w, g, Direction(grad_share=1.0))])[0].tolist(), strict=True)
    )
    assert row["nonfinite"] == 3
    assert row["weight_squares"] == math.inf
    assert math.isnan(row["grad_squares"])
    assert math.isnan(row["direction_squares"])


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("size", [1e25, 1e-25])
def test_squares_outside_of_the_range_of_float32(measure, size: float) -> None:
    w = torch.full((40000,), size)
    row = measure([LayerStep(w, w, w, Direction(grad_share=1.0))])[0]
    assert math.sqrt(row[SUMS.index("weight_squares")]) == pytest.approx(200 * size, rel=1e-6)
    assert math.sqrt(row[SUMS.index("direction_squares")]) == pytest.approx(200 * size, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_element_histograms_agree_with_element_bins(dtype: torch.dtype) -> None:
    values = (torch.randn(5000, generator=torch.Generator().manual_seed(3)) * 1e3).to(dtype)
    values[:6] = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1.0], dtype=dtype)
    counts = count_elements(values)
    assert counts.shape == (ELEMENT_BUCKETS,)
    assert counts.sum() == 5000
    expected = element_counts(values.float().numpy())
    assert {int(b): int(counts[b]) for b in counts.nonzero()} == expected
