"""Steps of one layer, drawn of any kind, and how exactly their sums are held to the reference."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st

from support.devices import DEVICE
from trustlens.recording.optimizers import Direction
from trustlens.recording.statistics import SUMS, LayerStep, reference

EXACT = 2e-5
COUNTED = ("nonfinite", "zero_grad", "swallowed")
LOST = ("update_squares", "update_dot_weight", "update_max", "swallowed")
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


# Of numbers that binary holds exactly, where terms may cancel: then they do so in any order.
FORMS = {
    "none": lambda _m, _v: None,
    "no gradient": adam,
    "adam": adam,
    "adam, undone": lambda m, v: adam(m, v, kept=float(np.float32(0.999))),
    "sgd": lambda _m, _v: Direction(grad_share=1.0, weight_share=0.25),
    "sgd, undone": lambda _m, _v: Direction(grad_share=1.0, weight_share=0.25, rate=0.125),
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
    "adam of a kept part float32 cannot hold, undone": lambda m, v: adam(m, v, kept=0.999),
    "measured by a rate binary cannot hold": lambda _m, _v: Direction(
        update_share=-1 / 0.3, weight_share=-0.01, decay=0.01
    ),
}


def step_of(*, seed, shape, dtypes, scales, form, layouts=("plain",) * 4, special=()):
    make = torch.Generator().manual_seed(seed)

    def drawn(i, scale, *, positive=False):
        values = torch.randn(shape, generator=make, dtype=torch.float64) * 10**scale
        values = values.square() if positive else values
        for value in special[:1] if i % 2 else special[1:]:
            if values.numel():
                values.view(-1)[seed % values.numel()] = abs(value) if positive else value
        return LAYOUTS[layouts[i]](values.to(dtypes[i]).to(DEVICE))

    w, g, m = drawn(0, scales[0]), drawn(1, scales[1]), drawn(2, scales[1])
    v = drawn(3, scales[1], positive=True)
    after = (w.double() + 10 ** scales[2] * g.double()).to(w.dtype)
    undone = form.endswith("undone") and w.dtype in {torch.float32, torch.float64}
    grad = None if form == "no gradient" else g
    direction = (FORMS | ROUNDED_FORMS)[form](m, v)
    return LayerStep(None if undone else w, after, grad, direction)


def kinds(shapes, forms):
    """What `step_of` takes, drawn: any dtypes, layouts and sizes of numbers."""
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


def agree(sums, steps):
    """Hold the sums of steps to the reference."""
    for got, truth in zip(sums.cpu().numpy(), reference.measure(steps).cpu().numpy(), strict=True):
        close(got, truth)


def agree_where_undone(sums, step):
    """Hold the sums of a step to the reference, but for the update's if float32 had to undo it.

    What float32 and float64 make of η·d may differ by a rounding, and w then by a last place.
    """
    undone = step.before is None and step.after.dtype == torch.float32
    (truth,) = reference.measure([step]).cpu().numpy()
    close(sums[0].cpu().numpy(), truth, LOST if undone else ())


def close(got, truth, left_out=()):
    """Hold sums to `EXACT`, inner products to that share of what their terms amount to."""
    of = dict(zip(SUMS, np.abs(np.nan_to_num(truth)), strict=True))
    for name, mine, true in zip(SUMS, got, truth, strict=True):
        if name in left_out:
            continue
        if not np.isfinite(true):
            assert mine == true or (np.isnan(mine) and np.isnan(true)), (name, mine, true)
        elif name in COUNTED:
            assert mine == true, (name, mine, true)
        else:
            a, b = PRODUCTS.get(name, (name, name))
            assert abs(mine - true) <= EXACT * of[a] ** 0.5 * of[b] ** 0.5, (name, mine, true)
