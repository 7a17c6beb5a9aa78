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
    debias = options["debias"]  # with "rate" and "first", the factors are not part of d
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
    """Return the direction of a LARS: d = g.

    The direction does not contain the momentum, because the momentum sums vectors that were already
    scaled by trust ratios.
    """
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
    """Return a trust ratio as a tensor without dimensions; None if the ratio is None.

    A number becomes a float32 tensor on the layer's device. A tensor stays on its own device.
    """
    if ratio is None or isinstance(ratio, Tensor):
        return None if ratio is None else ratio.detach().reshape(())
    return torch.full((), float(ratio), dtype=torch.float32, device=s.after.device)


def own_lamb(s: Stepped) -> Direction:
    """Return the direction of ``trustlens.optim.Lamb``.

    ``Direction.rate`` is the product of all factors by which the step multiplied d, including the
    trust ratio. ``Direction.kept`` is 1 − ηλ if the decay is applied before the step, else None.
    """
    d, debias = lamb_direction(s, s.group), s.group["debias"]
    applied: Any = s.rate if d.trust_ratio is None else s.rate * float_or_tensor(d.trust_ratio)
    if debias in ("rate", "first"):
        factor1, factor2 = debias_factors(s.group, s.steps)
        applied = applied * factor1 / (factor2**0.5 if debias == "rate" else 1)
    first = s.group["decay"] != "inside"  # the decay multiplies w by 1 − ηλ, not by 1 − ηrλ
    kept = 1 - s.rate * float(s.group["weight_decay"]) if first else None
    return replace(d, rate=applied, kept=kept)


def is_lamb_invertible(group: Group) -> bool:
    """Return whether a step of ``trustlens.optim.Lamb`` can be undone.

    If the decay is inside the update, undoing the step divides by 1 − ηrλ, where r is the trust
    ratio. Then ηrλ must be known to be below 0.5.
    """
    rate, clip = float_or_tensor(group["lr"]), group["clip_ratio"]
    decay = float(group["weight_decay"])
    if group["decay"] != "inside" or not decay:
        return True
    return clip is not None and not isinstance(rate, Tensor) and rate * clip[1] * decay < 0.5
