"""Directions that are computed from the change of the weights.

For layers with such a direction, the recorder copies the weights before each step.
"""

from __future__ import annotations

from torch import Tensor

from trustlens.recording.optimizers.direction import Direction, Stepped, float_or_tensor


def measured(s: Stepped, decay: float | None = None) -> Direction | None:
    """Return d = −Δw/η − λw if λ is given as ``decay``, else d + λw = −Δw/η.

    Return None if the group has no learning rate, or if the learning rate is 0.
    """
    rate = s.group.get("lr")
    if rate is None:
        return None
    rate = float_or_tensor(rate)
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


# Muon and LBFGS have no closed formula: only running the optimizer again would reproduce d.
def muon(s: Stepped) -> Direction | None:
    """Return the direction of `torch.optim.Muon`, computed by :func:`measured`."""
    return measured(s, float(s.group["weight_decay"]))


def lbfgs(s: Stepped) -> Direction | None:
    """Return the direction of `torch.optim.LBFGS`, computed by :func:`measured`."""
    return measured(s, 0.0)
