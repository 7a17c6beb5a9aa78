"""Directions of ``trustlens.optim.Lamb`` and ``Lars``; ``third_party`` reuses them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trustlens.recording.optimizers.direction import (
    Direction,
    Group,
    Stepped,
    debias_factors,
    float_or_tensor,
)


def lamb_direction(s: Stepped, options: Group) -> Direction:
    """Return the direction of a LAMB with the options of ``trustlens.optim.Lamb``.

    The state must hold ``exp_avg`` and ``exp_avg_sq``; it may hold ``trust_ratio``.
    """
    factor1, factor2 = debias_factors(options, s.steps)
    debias = options["debias"]  # "rate" and "first" apply the factors outside the direction
    inside = debias is True
    momentum = s.state["exp_avg"]
    return Direction(
        rate=s.rate,
        base=momentum,
        base_share=factor1 if inside else 1.0,
        variance=s.state["exp_avg_sq"],
        variance_share=factor2 if inside else 1.0,
        epsilon=options["eps"],
        momentum=momentum,
        decay=float(options["weight_decay"]),
        debias1=factor1 if debias else 1.0,
        debias2=factor2 if debias in (True, "rate") else 1.0,
        trust_ratio=applied_ratio(s, s.state.get("trust_ratio")),
    )


def lars_direction(s: Stepped) -> Direction:
    """Return the direction of a LARS: d = g, since the momentum contains the trust ratio."""
    buffer = s.state.get("momentum_buffer")
    return Direction(
        rate=s.rate,
        grad_share=1.0,
        momentum=buffer,
        decay=float(s.group["weight_decay"]),
        debias1=None if buffer is None else 1.0,
        trust_ratio=applied_ratio(s, s.state.get("trust_ratio")),
    )


def applied_ratio(s: Stepped, ratio: Any) -> Tensor | None:
    """Return a trust ratio (number, tensor or None) as a tensor without dimensions, or None.

    A number becomes float32 on the layer's device; a tensor stays on its device.
    """
    if ratio is None or isinstance(ratio, Tensor):
        return None if ratio is None else ratio.detach().reshape(())
    return torch.full((), float(ratio), dtype=torch.float32, device=s.after.device)


def own_lamb(s: Stepped) -> Direction:
    """Return the direction of ``trustlens.optim.Lamb``, with the rate that the step gave d."""
    d, debias = lamb_direction(s, s.group), s.group["debias"]
    applied: Any = s.rate if d.trust_ratio is None else s.rate * float_or_tensor(d.trust_ratio)
    if debias in ("rate", "first"):
        factor1, factor2 = debias_factors(s.group, s.steps)
        applied = applied * factor1 / (factor2**0.5 if debias == "rate" else 1)
    first = s.group["decay"] != "inside"  # the decay multiplies w by 1 − ηλ, without the ratio
    kept = 1 - s.rate * float(s.group["weight_decay"]) if first else None
    return replace(d, rate=applied, kept=kept)


def is_lamb_invertible(group: Group) -> bool:
    """Return whether 1 − ηrλ, the factor by which the decay multiplies w, is a safe divisor."""
    rate, clip = float_or_tensor(group["lr"]), group["clip_ratio"]
    decay = float(group["weight_decay"])
    if group["decay"] != "inside" or not decay:
        return True
    return clip is not None and not isinstance(rate, Tensor) and rate * clip[1] * decay < 0.5
