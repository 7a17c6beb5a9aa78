"""The definition of the sums by plain formulas on whole tensors, in float64.

Each compiled backend compares its results with these when it is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trustlens.kernels.sums import SUMS
from trustlens.recording.optimizers import Direction
from trustlens.recording.statistics.layer_step import LayerStep, undo


def measure(steps: Sequence[LayerStep]) -> Tensor:
    """Return the sums of each layer, float64 of shape (layers, len(SUMS))."""
    return torch.stack([_layer(step) for step in steps])


def _layer(step: LayerStep) -> Tensor:
    after = step.after.double()
    w = _before(step, after)
    update = after - w
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
        if step.direction is not None:
            sums |= _direction_sums(step.direction, w, g, update)
    missing = torch.full((), torch.nan, dtype=torch.float64, device=w.device)
    return torch.stack([sums.get(name, missing).double() for name in SUMS])


def _before(step: LayerStep, after: Tensor) -> Tensor:
    if step.before is not None:
        return step.before.double()
    form = step.direction
    if form is None or step.grad is None:
        return after.clone()
    applied = form.rate * (_terms(form, step.grad.double()) / _denominator(form))
    return undo(after.clone(), applied, form, step.after.dtype)


def _direction_sums(form: Direction, w: Tensor, g: Tensor, update: Tensor) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    d = _terms(form, g)
    if _is_nonzero(form.weight_share):
        d = d + form.weight_share * w
    d = d / _denominator(form)
    if _is_nonzero(form.update_share):
        d = d + form.update_share * update
    if form.momentum is not None:
        m = form.momentum.double()
        sums["grad_dot_momentum"] = (g * m).sum()
        sums["momentum_squares"] = (m * m).sum()
    if form.variance is not None:
        v = form.variance_share * form.variance.double()
        sums["variance_sum"] = v.sum()
        sums["surprise_sum"] = (g * g / v.clamp(min=form.epsilon**2)).sum()
    u = d + form.decay * w if form.decay else d
    return sums | {
        "direction_squares": (u * u).sum(),
        "undecayed_squares": (d * d).sum(),
        "undecayed_dot_weight": (d * w).sum(),
        "swallowed": ((update == 0) & (u != 0)).sum(),
    }


def _terms(form: Direction, g: Tensor) -> Tensor:
    """Return a·g + b·x, two terms of the formula in ``recording/optimizers/direction.py``."""
    terms = torch.zeros_like(g)
    if _is_nonzero(form.grad_share):
        terms = terms + form.grad_share * g
    if form.base is not None and _is_nonzero(form.base_share):
        terms = terms + form.base_share * form.base.double()
    return terms


def _denominator(form: Direction) -> Any:
    if form.variance is None or not form.divides:
        return 1.0
    return (form.variance_share * form.variance.double()).sqrt() + form.epsilon


def _is_nonzero(share: float | Tensor) -> bool:
    """Return whether to compute a term, given its coefficient ``share``.

    A term with coefficient 0 is omitted, since 0·∞ would be NaN. A tensor counts as nonzero.
    """
    return isinstance(share, Tensor) or share != 0


def _largest(values: Tensor) -> Tensor:
    return values.abs().max() if values.numel() else values.sum()
