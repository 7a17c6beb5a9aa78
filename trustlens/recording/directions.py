"""What each optimizer family did in a step, told from the state that it left behind.

Every direction here is one formula with other constants::

    d = (a·g + b·m + c·w) / (√(h·v) + ε)        the denominator being 1 without a v

``m`` and ``v`` being tensors of the optimizer's state as they lie, so that the sums over a layer
need no temporary of its size. A family is one function from (parameter, group, state) to a
:class:`Direction`; :data:`FAMILIES` names them by the optimizer's class.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer

from trustlens.optim import Lamb, Lars

State = Mapping[str, Any]
Group = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Direction:
    """How one layer's direction d follows from g, m, v and w, and what was applied beside it.

    Attributes
    ----------
    momentum, variance : Tensor, optional
        m and v as the optimizer keeps them, of the parameter's shape.
    grad_share, momentum_share, weight_share : float
        a, b and c of the formula above; b may be a tensor without dimensions.
    variance_share : float or Tensor
        h: v̂ = h·v.
    epsilon : float
        ε, outside the root.
    decay : float
        Decoupled weight decay λ.
    debias1, debias2 : float or Tensor, optional
        The debias factors that were applied; None where there is no average to debias. Tensors
        where the layer's step count lies on the device.
    trust_ratio : Tensor, optional
        The ratio that the optimizer applied, without dimensions; None if it applied none.
    """

    momentum: Tensor | None = None
    variance: Tensor | None = None
    grad_share: float = 0.0
    momentum_share: float | Tensor = 0.0
    weight_share: float = 0.0
    variance_share: float | Tensor = 1.0
    epsilon: float = 0.0
    decay: float = 0.0
    debias1: float | Tensor | None = None
    debias2: float | Tensor | None = None
    trust_ratio: Tensor | None = None


Family = Callable[[Group, State, int | Tensor], Direction]


def family_of(optimizer: Optimizer) -> Family | None:
    """Return how this optimizer's direction is had; None if it is not known.

    A subclass counts as its parent only if it steps as its parent does.
    """
    # Unwrapped, since torch wraps `step` anew in each class whose first optimizer is made.
    step = inspect.unwrap(type(optimizer).step)
    for known, family in FAMILIES.items():
        if isinstance(optimizer, known) and step is inspect.unwrap(known.step):
            return family
    return None


def steps_done(state: State) -> int | Tensor:
    """Return the layer's own step count t; 0 where the optimizer keeps none.

    A count that lies on an accelerator stays a tensor, since reading it would wait.
    """
    step = state.get("step", 0)
    if isinstance(step, Tensor) and step.device.type == "cpu":
        return int(step.item())
    return step


def _adam(group: Group, state: State, t: int | Tensor) -> Direction:
    # torch.optim.Adam and AdamW; amsgrad divides by the largest v so far (Reddi et al. 2018).
    factor1, factor2 = _debias(group, t)
    decoupled = bool(group.get("decoupled_weight_decay", False))
    return Direction(
        momentum=state["exp_avg"],
        variance=state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"],
        momentum_share=factor1,
        variance_share=factor2,
        epsilon=group["eps"],
        decay=_number(group["weight_decay"]) if decoupled else 0.0,
        debias1=factor1,
        debias2=factor2,
    )


def _sgd(group: Group, state: State, t: int | Tensor) -> Direction:  # noqa: ARG001 — every family's form
    # torch.optim.SGD: its decay goes into the gradient, before the momentum.
    buffer = state.get("momentum_buffer")
    decay, momentum = _number(group["weight_decay"]), _number(group["momentum"])
    if buffer is None:
        return Direction(grad_share=1.0, weight_share=decay)
    if not group["nesterov"]:
        return Direction(momentum=buffer, momentum_share=1.0, debias1=1.0)
    return Direction(
        momentum=buffer,
        grad_share=1.0,
        momentum_share=momentum,
        weight_share=decay,
        debias1=1.0,
    )


def _lamb(group: Group, state: State, t: int | Tensor) -> Direction:
    factor1, factor2 = _debias(group, t)
    debias = group["debias"]  # "rate" and "first" apply the factors outside the direction
    inside = debias is True
    return Direction(
        momentum=state["exp_avg"],
        variance=state["exp_avg_sq"],
        momentum_share=factor1 if inside else 1.0,
        variance_share=factor2 if inside else 1.0,
        epsilon=group["eps"],
        decay=_number(group["weight_decay"]),
        debias1=factor1 if debias else 1.0,
        debias2=factor2 if debias in (True, "rate") else 1.0,
        trust_ratio=state["trust_ratio"],
    )


def _lars(group: Group, state: State, t: int | Tensor) -> Direction:  # noqa: ARG001 — every family's form
    buffer = state.get("momentum_buffer")
    return Direction(
        momentum=buffer,
        grad_share=1.0,
        decay=_number(group["weight_decay"]),
        debias1=None if buffer is None else 1.0,
        trust_ratio=state["trust_ratio"],
    )


def _debias(group: Group, t: int | Tensor) -> tuple[float | Tensor, float | Tensor]:
    beta1, beta2 = (_number(beta) for beta in group["betas"])
    return _debias_factor(beta1, t), _debias_factor(beta2, t)


def _debias_factor(beta: float, t: int | Tensor) -> float | Tensor:
    if beta == 0:
        return 1.0
    if isinstance(t, Tensor):  # expm1, since 1 − βᵗ would cancel in the count's float32
        return -1 / torch.expm1(t * math.log(beta))
    return 1 / (1 - beta**t)


def _number(value: float | Tensor) -> float:
    return float(value)


FAMILIES: Final[Mapping[type[Optimizer], Family]] = {
    torch.optim.AdamW: _adam,
    torch.optim.Adam: _adam,
    torch.optim.SGD: _sgd,
    Lamb: _lamb,
    Lars: _lars,
}
"""The families whose direction is known. AdamW inherits from Adam, and its groups say so."""
