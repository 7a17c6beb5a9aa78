"""The update formula that all optimizers share, and the description of an optimizer family.

Every optimizer's direction d is the same formula with other coefficients::

    d = (a·g + b·x + c·w) / (√(h·v) + ε) + e·Δw

The denominator is 1 if the optimizer does not divide. d is defined by what the step does with it:
``Δw = −η(d + λw)``, where η is the learning rate of the layer's group and λ its decoupled weight
decay. Other factors of the learning rate (Adagrad's decay of the rate, Adafactor's scale) are part
of d; only LAMB and LARS have a trust ratio, and factors of the rate, outside d.

If the formula allows it, ``x`` and ``v`` are the optimizer's state tensors themselves, so that
computing the sums over a layer allocates nothing of the layer's size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trustlens.trust_ratio import RatioRule

State = Mapping[str, Any]
Group = Mapping[str, Any]


@dataclass(slots=True)  # not frozen, which would triple the time: one is made per layer and step
class Direction:
    """The coefficients of one layer's direction d, and what the optimizer applied besides d.

    A coefficient is a float, or a tensor on the layer's device if reading it would synchronize.
    Such a tensor has no dimensions, or the shape (n,) if this object describes n layers at once.

    Attributes
    ----------
    rate : float or Tensor
        The factor that the step multiplied d by: η, for LAMB including the factors outside d.
    base : Tensor, optional
        x, in the parameter's shape.
    grad_share, base_share, weight_share, update_share : float or Tensor
        a, b, c and e of the formula.
    variance : Tensor, optional
        v, in the parameter's shape.
    variance_share : float or Tensor
        h, so that v̂ = h·v.
    divides : bool
        Whether d is divided by √v̂ + ε. If not, v is recorded but not used.
    epsilon : float
        ε, outside the root.
    momentum : Tensor, optional
        m, to be recorded; often the same tensor as ``base``.
    decay : float or None
        Decoupled weight decay λ. None if λ is not known; ``d`` then holds d + λw.
    kept : float or Tensor, optional
        The factor that the decay multiplies w by, if the optimizer rounds it first. If None, it is
        1 − η(c + λ).
    debias1, debias2 : float or Tensor, optional
        The debias factors that were applied; None if there is no average to debias.
    trust_ratio : Tensor, optional
        The trust ratio that the optimizer applied, if its state holds it.
    ratio_rule : RatioRule, optional
        How to compute that ratio from the recorded norms, if its state does not hold it.
    measured : bool
        Whether d was computed from the change of the weights and has their rounding error.
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


@dataclass(slots=True)  # not frozen, as `Direction`
class Stepped:
    """One layer after the optimizer's step: the argument of :attr:`Family.direction`.

    All tensors are on the layer's device. Complex ones are given as real tensors with a last
    dimension of size 2.

    Attributes
    ----------
    group : mapping
        The options of the layer's parameter group.
    state : mapping
        The optimizer's state of the layer, after the step.
    grad : Tensor
        The gradient that the step used: dense, and negated if the optimizer maximizes.
    after : Tensor
        The parameter after the step.
    before : Tensor, optional
        The parameter before the step, if it was copied.
    given_grad : Tensor
        The gradient as the optimizer received it; may be sparse.
    entry_before : Tensor, optional
        The state entry that :attr:`Family.state_entry_before` names, as it was before the step.
    optimizer : Any
        The optimizer.
    """

    group: Group
    state: State
    grad: Tensor
    after: Tensor
    before: Tensor | None
    given_grad: Tensor
    entry_before: Tensor | None
    optimizer: Any

    @property
    def rate(self) -> float | Tensor:
        """The learning rate η: a float, or a tensor if it is on an accelerator."""
        return float_or_tensor(self.group["lr"])

    @property
    def steps(self) -> int | Tensor:
        """The layer's own step count t, or 0 if the optimizer keeps none.

        Some optimizers keep one count per group. A count on an accelerator is a tensor, since
        reading it would synchronize.
        """
        step = self.state.get("step", self.group.get("step", 0))
        return step if is_on_accelerator(step) else int(step)


def never(group: Group) -> bool:  # noqa: ARG001 — has the signature of a flag of `Family`
    """Return False for every group."""
    return False


def always(group: Group) -> bool:  # noqa: ARG001 — has the signature of a flag of `Family`
    """Return True for every group."""
    return True


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of optimizer: how its direction is computed, and what the recorder can rely on.

    Flags that depend on an optimizer's options are functions of a parameter group.

    Attributes
    ----------
    name : str
        The name in the literature (``"Adam"``, ``"LAMB"``); empty if the optimizer is unknown.
    direction : callable
        Takes a :class:`Stepped` and returns the layer's :class:`Direction`, or None if d cannot be
        computed for this step.
    invertible : callable
        Whether the weights before a step can be computed from the state after it, as
        ``w = (w' + η·(a·g + b·x)/(√v̂ + ε)) / (1 − η(c + λ))``. If not, the recorder copies them
        before each step.
    overwrites_grad : callable
        Whether the step may change ``p.grad``. If so, the recorder copies it first.
    grad_factor : callable, optional
        Takes the optimizer and the gradients that it received, and returns the factor by which the
        step scales them without writing it back to ``p.grad`` (internal clipping, for example).
        Returns 1 if the step scales ``p.grad`` in place.
    uses_first_grad : bool
        Whether to copy the gradient after the first call of a step's closure.
    cacheable : bool
        Whether the directions of layers of the same group and step count differ only in their
        tensors, all of which are entries of the state. If not, the direction of each layer is
        computed again in each step.
    provides_sums : bool
        Whether the optimizer's fused step can compute the recorded sums itself; see
        ``Lamb.measured``.
    provides_weights_before : bool
        Whether such an optimizer keeps the weights before the step of those layers whose step was
        not fused; see ``Lars.before``.
    state_entry_before : str, optional
        Name of a state entry (a tensor without dimensions) whose value before the step
        ``direction`` needs.
    variant : str, optional
        The key of ``LAMB_VARIANTS`` or ``LARS_VARIANTS`` that describes the optimizer.
    """

    name: str
    direction: Callable[[Stepped], Direction | None]
    invertible: Callable[[Group], bool] = never
    overwrites_grad: Callable[[Group], bool] = never
    grad_factor: Callable[[Any, Sequence[Tensor]], float | Tensor] | None = None
    uses_first_grad: bool = False
    cacheable: bool = False
    provides_sums: bool = False
    provides_weights_before: bool = False
    state_entry_before: str | None = None
    variant: str | None = None


def float_or_tensor(value: float | Tensor) -> float | Tensor:
    """Return a number as a Python float, or as a tensor if reading it would synchronize.

    A tensor on an accelerator is returned detached, without dimensions if it has one element.
    """
    if isinstance(value, Tensor):
        value = value.detach()
        if is_on_accelerator(value):
            return value.reshape(()) if value.numel() == 1 else value
    return float(value)


def is_on_accelerator(value: Any) -> bool:
    """Return whether a number is a tensor on an accelerator, so that reading it synchronizes."""
    return isinstance(value, Tensor) and value.device.type != "cpu"


def debias_factors(group: Group, t: int | Tensor) -> tuple[float | Tensor, float | Tensor]:
    """Return 1/(1 − β₁ᵗ) and 1/(1 − β₂ᵗ) (Kingma and Ba 2015, section 3)."""
    beta1, beta2 = group["betas"]
    return debias_factor(beta1, t), debias_factor(beta2, t)


def debias_factor(beta: float | Tensor, t: int | Tensor) -> float | Tensor:
    """Return 1/(1 − βᵗ); a tensor if β or t is a tensor on an accelerator."""
    beta = float_or_tensor(beta)
    if isinstance(beta, Tensor):
        return -1 / torch.expm1(t * beta.log())
    if beta == 0:
        return 1.0
    if isinstance(t, Tensor):  # expm1, since 1 − βᵗ would cancel in the count's float32
        return -1 / torch.expm1(t * math.log(beta))
    return 1 / (1 - beta**t)


def upcast(tensor: Tensor) -> Tensor:
    """Return a tensor as float64, or as float32 on devices without float64."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()
