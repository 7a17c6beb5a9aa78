"""Random steps of one layer, and assertions that compare their sums with the reference."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st

from tests.support.devices import DEVICE
from trustlens.recording.optimizers import Direction
from trustlens.recording.statistics import SUMS, LayerStep, reference

EXACT = 2e-5
"""Largest relative error of a sum."""

COUNTED = ("nonfinite", "zero_grad", "swallowed")
UPDATE_SUMS = ("update_squares", "update_dot_weight", "update_max", "swallowed")
PRODUCTS = {
    "undecayed_dot_weight": ("undecayed_squares", "weight_squares"),
    "update_dot_weight": ("update_squares", "weight_squares"),
    "grad_dot_momentum": ("grad_squares", "momentum_squares"),
}

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SPECIAL = [0.0, -0.0, 1e25, -1e25, 1e-25, 1e-42, float("nan"), float("inf"), -float("inf"), 3e38]
LAYOUTS = {
    "plain": lambda t: t,
    "strided": lambda t: torch.stack([t, t], dim=-1)[..., 0],
    "transposed": lambda t: t.mT.contiguous().mT if t.dim() > 1 else t,
}


def adam(m, v, kept=1.0):
    return Direction(
        base=m, momentum=m, variance=v, base_share=1.5, variance_share=1.25, epsilon=1e-8,
        decay=0.1, rate=0.01, kept=kept,
    )  # fmt: skip


# Where terms may cancel, the factors are exact binary numbers: then the result does not depend on
# the order of the operations.
FORMS = {
    "none": lambda _m, _v: None,
    "no gradient": adam,
    "adam": adam,
    "adam, weights reconstructed": lambda m, v: adam(m, v, kept=float(np.float32(0.999))),
    "sgd": lambda _m, _v: Direction(grad_share=1.0, weight_share=0.25),
    "sgd, weights reconstructed": lambda _m, _v: Direction(
        grad_share=1.0, weight_share=0.25, rate=0.125
    ),
    "nesterov": lambda m, _v: Direction(grad_share=1.0, base=m, base_share=0.875, momentum=m),
    "measured": lambda _m, _v: Direction(update_share=-8.0, weight_share=-0.125, decay=0.125),
    "recorded only": lambda _m, v: Direction(
        grad_share=1.0, variance=v, divides=False, epsilon=1e-4
    ),
    "decay in the ratio": lambda _m, v: Direction(
        grad_share=0.5, base=v, base_share=0.1, weight_share=0.3, variance=v, epsilon=0.0
    ),
}
ROUNDED_FORMS = {
    "adam, inexact factor, weights reconstructed": lambda m, v: adam(m, v, kept=0.999),
    "measured, inexact rate": lambda _m, _v: Direction(
        update_share=-1 / 0.3, weight_share=-0.01, decay=0.01
    ),
}


def make_step(*, seed, shape, dtypes, scales, form, layouts=("plain",) * 4, special=()):
    make = torch.Generator().manual_seed(seed)

    def draw(i, scale, *, positive=False):
        values = torch.randn(shape, generator=make, dtype=torch.float64) * 10**scale
        values = values.square() if positive else values
        for value in special[:1] if i % 2 else special[1:]:
            if values.numel():
                values.view(-1)[seed % values.numel()] = abs(value) if positive else value
        return LAYOUTS[layouts[i]](values.to(dtypes[i]).to(DEVICE))

    w, g, m = draw(0, scales[0]), draw(1, scales[1]), draw(2, scales[1])
    v = draw(3, scales[1], positive=True)
    after = (w.double() + 10 ** scales[2] * g.double()).to(w.dtype)
    exact = w.dtype in {torch.float32, torch.float64}
    reconstructed = exact and form.endswith("weights reconstructed")
    grad = None if form == "no gradient" else g
    direction = (FORMS | ROUNDED_FORMS)[form](m, v)
    return LayerStep(None if reconstructed else w, after, grad, direction)


def step_arguments(shapes, forms):
    """Return a strategy for the arguments of `make_step`: any dtypes, layouts and magnitudes."""
    return st.fixed_dictionaries(
        {
            "seed": st.integers(0, 2**31),
            "shape": st.sampled_from(shapes),
            "dtypes": st.tuples(*[st.sampled_from(DTYPES)] * 4) | st.just((torch.float32,) * 4),
            "layouts": st.tuples(*[st.sampled_from(list(LAYOUTS))] * 4),
            "scales": st.tuples(*[st.floats(-14, 14)] * 3),
            "form": st.sampled_from(list(forms)),
            "special": st.lists(st.sampled_from(SPECIAL), max_size=3),
        }
    )


def assert_agree(sums, steps):
    """Assert that the sums of steps agree with the reference."""
    for got, truth in zip(sums.cpu().numpy(), reference.measure(steps).cpu().numpy(), strict=True):
        assert_close(got, truth)


def assert_agree_except_reconstructed(sums, step):
    """Assert that the sums of a step agree with the reference.

    If w is reconstructed in float32, do not compare the sums of the update: η·d may differ by a
    rounding from that in float64, and w by a unit in its last place.
    """
    reconstructed = step.before is None and step.after.dtype == torch.float32
    (truth,) = reference.measure([step]).cpu().numpy()
    assert_close(sums[0].cpu().numpy(), truth, UPDATE_SUMS if reconstructed else ())


def assert_close(got, truth, ignored=()):
    """Assert a relative error of at most `EXACT`; for inner products, relative to ‖a‖·‖b‖."""
    of = dict(zip(SUMS, np.abs(np.nan_to_num(truth)), strict=True))
    for name, found, expected in zip(SUMS, got, truth, strict=True):
        if name in ignored:
            continue
        if not np.isfinite(expected):
            assert found == expected or (np.isnan(found) and np.isnan(expected)), (
                name,
                found,
                expected,
            )
        elif name in COUNTED:
            assert found == expected, (name, found, expected)
        else:
            a, b = PRODUCTS.get(name, (name, name))
            assert abs(found - expected) <= EXACT * of[a] ** 0.5 * of[b] ** 0.5, (
                name,
                found,
                expected,
            )
