"""The truth: the sums by their plain formulas, whole tensors in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trustlens.recording.statistics import SUMS, LayerStep


def measure(steps: Sequence[LayerStep]) -> Tensor:
    """Return the sums of each layer, float64 of shape (layers, len(SUMS))."""
    return torch.stack([_layer(step) for step in steps])


def _layer(step: LayerStep) -> Tensor:
    w = step.before.double()
    update = step.after.double() - w
    sums: dict[str, Tensor] = {
        "weight_squares": (w * w).sum(),
        "update_squares": (update * update).sum(),
        "update_dot_weight": (update * w).sum(),
        "update_max": _largest(update),
        "nonfinite": (~w.isfinite()).sum(),
    }
    if step.grad is not None:
        g = step.grad.double()
        sums["grad_squares"] = (g * g).sum()
        sums["grad_max"] = _largest(g)
        sums["nonfinite"] = (~(w.isfinite() & g.isfinite())).sum()
        sums["zero_grad"] = (g == 0).sum()
        sums |= _of_direction(step, w, g, update)
    missing = torch.full((), torch.nan, dtype=torch.float64, device=w.device)
    return torch.stack([sums.get(name, missing).double() for name in SUMS])


def _of_direction(step: LayerStep, w: Tensor, g: Tensor, update: Tensor) -> dict[str, Tensor]:
    if step.direction is None:
        return {}
    form = step.direction
    sums: dict[str, Tensor] = {}
    d = torch.zeros_like(w)
    for share, values in ((form.grad_share, g), (form.weight_share, w)):
        if share:  # 0·∞ would be NaN
            d = d + share * values
    if form.momentum is not None:
        m = form.momentum.double()
        if isinstance(form.momentum_share, Tensor) or form.momentum_share:
            d = d + form.momentum_share * m
        sums["grad_dot_momentum"] = (g * m).sum()
        sums["momentum_squares"] = (m * m).sum()
    if form.variance is not None:
        v = form.variance_share * form.variance.double()
        d = d / (v.sqrt() + form.epsilon)
        sums["variance_sum"] = v.sum()
        sums["surprise_sum"] = (g * g / v.clamp(min=form.epsilon**2)).sum()
    u = d + form.decay * w if form.decay else d
    return sums | {
        "direction_squares": (u * u).sum(),
        "undecayed_squares": (d * d).sum(),
        "undecayed_dot_weight": (d * w).sum(),
        "swallowed": ((update == 0) & (u != 0)).sum(),
    }


def _largest(values: Tensor) -> Tensor:
    return values.abs().max() if values.numel() else values.sum()
