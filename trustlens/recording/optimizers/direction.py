"""The one formula of every direction, and what a family is.

Every direction d is the same formula with other constants::

    d = (a·g + b·x + c·w) / (√(h·v) + ε) + e·Δw

the denominator being 1 where the optimizer does not divide. d is defined by what the step does
with it: ``Δw = −η(d + λw)``, η being the learning rate of the layer's group and λ its decoupled
weight decay; what an optimizer multiplies its rate by (Adagrad's decay of the rate, Adafactor's
scale) is part of d. Only LAMB and LARS have a ratio, and factors of the rate, outside d.

``x`` and ``v`` are tensors of the optimizer's state as they lie, wherever its formula allows, so
that the sums over a layer need no temporary of its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

State = Mapping[str, Any]
Group = Mapping[str, Any]

RatioRule = Callable[..., NDArray[np.float64]]
"""The trust ratio that an optimizer applied and did not keep, from what was measured.

Called with ``weight_norm``, ``undecayed_norm``, ``direction_norm``, ``learning_rate`` and
``weight_decay``, float64 arrays of shape (rows,), and returns one.
"""


@dataclass(slots=True)  # not frozen: made for each layer in each step, in a third of the time
class Direction:
    """How one layer's direction d follows from g, x, v, w and Δw, and what was applied beside it.

    Attributes
    ----------
    rate : float or Tensor
        What the step multiplied the direction by: η, and for LAMB what else is outside d. A tensor,
        here and below, has no dimensions and lies on the layer's device. Where the direction is
        that of n layers at once, it may be of shape (n,).
    base : Tensor, optional
        x, of the parameter's shape.
    grad_share, base_share, weight_share, update_share : float or Tensor
        a, b, c and e of the formula.
    variance : Tensor, optional
        v, of the parameter's shape.
    variance_share : float or Tensor
        h: v̂ = h·v.
    divides : bool
        Whether d is divided by √v̂ + ε; if not, v is only recorded.
    epsilon : float
        ε, outside the root.
    momentum : Tensor, optional
        m, to be recorded; often the same tensor as ``base``.
    decay : float or None
        Decoupled weight decay λ. None: not known, and then ``d`` holds d + λw.
    kept : float or Tensor, optional
        What the decay leaves of w, where the optimizer rounds that number before it multiplies;
        else it is 1 − η(c + λ).
    debias1, debias2 : float or Tensor, optional
        The debias factors that were applied; None where there is no average to debias.
    trust_ratio : Tensor, optional
        The ratio that the optimizer applied.
    ratio_rule : RatioRule, optional
        The same where the optimizer keeps none.
    measured : bool
        Whether d was read off the weights: then it has their rounding.
    """

    rate: float | Tensor = math.nan
    base: Tensor | None = None
    grad_share: float | Tensor = 0.0
    base_share: float | Tensor = 0.0
    weight_share: float | Tensor = 0.0
    update_share: float | Tensor = 0.0
    variance: Tensor | None = None
    variance_share: float | Tensor = 1.0
    divides: bool = True
    epsilon: float = 0.0
    momentum: Tensor | None = None
    decay: float | None = 0.0
    kept: float | Tensor | None = None
    debias1: float | Tensor | None = None
    debias2: float | Tensor | None = None
    trust_ratio: Tensor | None = None
    ratio_rule: RatioRule | None = None
    measured: bool = False


@dataclass(slots=True)  # as above
class Stepped:
    """One layer whose step is done, as a family is given it.

    Complex tensors come as real ones with a last dimension of 2.

    Attributes
    ----------
    group : mapping
        The options of its parameter group.
    state : mapping
        What the optimizer keeps of it.
    grad : Tensor
        The gradient that the step used, of the loss that goes down; dense.
    after : Tensor
        The parameter now.
    before : Tensor, optional
        The parameter before the step, if a copy was kept.
    given_grad : Tensor
        The gradient as the optimizer was given it, maybe sparse.
    noted : Tensor, optional
        What the family noted of the state before the step.
    optimizer : Any
        The optimizer itself.
    """

    group: Group
    state: State
    grad: Tensor
    after: Tensor
    before: Tensor | None
    given_grad: Tensor
    noted: Tensor | None
    optimizer: Any

    @property
    def rate(self) -> float | Tensor:
        """The learning rate η: a number, or a tensor where it lies on an accelerator."""
        return number(self.group["lr"])

    @property
    def steps(self) -> int | Tensor:
        """The layer's own step count t."""
        return steps_done(self.state, self.group)


def never(group: Group) -> bool:  # noqa: ARG001 — the form of what a family tells of a group
    """Return False, whatever the options."""
    return False


def always(group: Group) -> bool:  # noqa: ARG001 — as above
    """Return True, whatever the options."""
    return True


@dataclass(frozen=True, slots=True)
class Family:
    """What is known of optimizers of one kind.

    Attributes
    ----------
    name : str
        What the field calls it; empty if it is not known.
    direction : callable
        Returns a layer's direction; None if it cannot be told in this step.
    undoes : callable
        Whether, with these options, the weights before a step follow from the state after it, as
        ``w = (w' + η·(a·g + b·x)/(√v̂ + ε)) / (1 − η(c + λ))``. Else a copy of them is kept.
    spoils_grad : callable
        Whether, with these options, ``p.grad`` after the step may be another than the step used:
        it is copied then.
    grad_factor : callable, optional
        Given the optimizer and all gradients as it was given them, what the step multiplies them
        by without a trace in ``p.grad``. Optional, as is the trace: where there is one, it is 1.
    uses_first_grad : bool
        Whether the gradient to be copied is that of the first call of a step's closure.
    alike : bool
        Whether the directions of a group's layers at one step count differ by their tensors only,
        and those are entries of the state as they lie (or ``trust_ratio``): if not, a layer's
        direction is made anew in each step.
    yields : bool
        Whether it makes the sums itself while it steps, where it can: see ``Lamb.measured``.
    keeps_weights : bool
        Whether it then keeps the weights from before the step of all others: see ``Lars.before``.
    note : str, optional
        An entry of the state, without dimensions, that ``direction`` needs as it was before.
    variant : str, optional
        The key of ``LAMB_VARIANTS`` or ``LARS_VARIANTS`` that it steps as.
    """

    name: str
    direction: Callable[[Stepped], Direction | None]
    undoes: Callable[[Group], bool] = never
    spoils_grad: Callable[[Group], bool] = never
    grad_factor: Callable[[Any, Sequence[Tensor]], float | Tensor] | None = None
    uses_first_grad: bool = False
    alike: bool = False
    yields: bool = False
    keeps_weights: bool = False
    note: str | None = None
    variant: str | None = None


def steps_done(state: State, group: Group) -> int | Tensor:
    """Return the layer's own step count t; 0 where the optimizer keeps none.

    Some keep one count for a whole group. A count that lies on an accelerator stays a tensor,
    since reading it would wait.
    """
    step = state.get("step", group.get("step", 0))
    return step if reading_waits(step) else int(step)


def number(value: float | Tensor) -> float | Tensor:
    """Return an option as a float; one that lies on an accelerator as it is, one each of some."""
    if isinstance(value, Tensor):
        value = value.detach()
        if reading_waits(value):
            return value.reshape(()) if value.numel() == 1 else value
    return float(value)


def reading_waits(value: Any) -> bool:
    """Tell whether to read this number is to wait for an accelerator."""
    return isinstance(value, Tensor) and value.device.type != "cpu"


def debias_factors(group: Group, t: int | Tensor) -> tuple[float | Tensor, float | Tensor]:
    """Return 1/(1 − β₁ᵗ) and 1/(1 − β₂ᵗ) (Kingma and Ba 2015, section 3)."""
    beta1, beta2 = group["betas"]
    return debias_factor(beta1, t), debias_factor(beta2, t)


def debias_factor(beta: float | Tensor, t: int | Tensor) -> float | Tensor:
    """Return 1/(1 − βᵗ)."""
    beta = number(beta)
    if isinstance(beta, Tensor):
        return -1 / torch.expm1(t * beta.log())
    if beta == 0:
        return 1.0
    if isinstance(t, Tensor):  # expm1, since 1 − βᵗ would cancel in the count's float32
        return -1 / torch.expm1(t * math.log(beta))
    return 1 / (1 - beta**t)


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, or in float32 where the device has none."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()
