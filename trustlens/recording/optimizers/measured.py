"""Optimizers whose direction is read off the weights, which are copied before the step."""

from __future__ import annotations

from torch import Tensor

from trustlens.recording.optimizers.direction import Direction, Family, Stepped, always, number


def measured(s: Stepped, decay: float | None = None) -> Direction | None:
    """Return d + λw, or d where λ is given, as the weights show it: −Δw/η."""
    rate = s.group.get("lr")
    if rate is None:
        return None
    rate = number(rate)
    if not isinstance(rate, Tensor) and rate == 0:
        return None
    momentum = s.state.get("momentum_buffer")
    if not isinstance(momentum, Tensor) or momentum.shape != s.after.shape:
        momentum = None
    return Direction(
        rate=rate,
        update_share=-1 / rate,
        weight_share=-decay if decay else 0.0,
        momentum=momentum,
        decay=decay,
        debias1=None if momentum is None else 1.0,
        measured=True,
    )


# What these do with the gradient could only be had by doing it again.
MUON = Family("Muon", lambda s: measured(s, float(s.group["weight_decay"])))
LBFGS = Family("LBFGS", lambda s: measured(s, 0.0), spoils_grad=always, uses_first_grad=True)
