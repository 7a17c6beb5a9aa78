"""The update formula that all optimizers share, and the description of an optimizer family.

Every optimizer's direction d is the same formula with other coefficients::

    d = (a·g + b·x + c·w) / (√(h·v) + ε) + e·Δw

Here g is the gradient, w the weights before the step and Δw the change that the step made to them;
x is usually the momentum and v the second moment. The denominator is 1 if the optimizer does not
divide.

The step defines d: ``Δw = −η(d + λw)``, where η and λ are the learning rate and the decoupled
weight decay of the layer's group. Other factors that multiply η, such as Adagrad's decay of the
rate or Adafactor's scale, are part of d. LAMB and LARS are exceptions: their trust ratio and their
factors of η are not part of d.

Where possible, ``x`` and ``v`` are the optimizer's own state tensors, not new ones. The sums over a
layer can then be computed without a new tensor of the layer's size.
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


# Not frozen: a frozen one takes three times as long to create, and each layer needs one per step.
@dataclass(slots=True)
class Direction:
    """One layer's direction d as coefficients and tensors, with its decay and trust ratio.

    :attr:`Family.direction` returns it; the backends of ``recording/statistics`` compute the
    recorded sums from it.

    A coefficient is a float, unless its value is on an accelerator and reading it would make the
    CPU wait. It is then a tensor on the layer's device: without dimensions, or of shape (n,) if
    this object describes n layers at once.

    Attributes
    ----------
    rate : float or Tensor
        The factor by which the step multiplied d: η. For ``trustlens.optim.Lamb`` it includes the
        trust ratio and the other factors that are not part of d.
    base : Tensor, optional
        x, in the parameter's shape.
    grad_share, base_share, weight_share, update_share : float or Tensor
        The coefficients a, b, c and e of the formula.
    variance : Tensor, optional
        v, in the parameter's shape.
    variance_share : float or Tensor
        The coefficient h of the formula, so that v̂ = h·v.
    divides : bool
        Whether d has the denominator √v̂ + ε. If not, v is recorded, but d does not depend on it.
    epsilon : float
        ε, which is added outside the root.
    momentum : Tensor, optional
        The momentum m, which is recorded; often the same tensor as ``base``.
    decay : float or None
        Decoupled weight decay λ. None if λ is not known; this object then describes d + λw.
    kept : float or Tensor, optional
        The factor by which the decay multiplies w, given if it is not exactly 1 − η(c + λ), for
        example because the optimizer rounds it. None: the factor is 1 − η(c + λ).
    debias1, debias2 : float or Tensor, optional
        The factors by which the optimizer debiased m and v. None if there is no such average.
    trust_ratio : Tensor, optional
        The trust ratio that the optimizer applied, if its state holds it.
    ratio_rule : RatioRule, optional
        How to compute the trust ratio from the recorded norms, if the state does not hold it.
    measured : bool
        Whether d was computed from the change of the weights. If so, the rounding error of the
        weights is also in d.
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


@dataclass(slots=True)  # not frozen, for the same reason as `Direction`
class Stepped:
    """One layer after the optimizer's step: the argument of :attr:`Family.direction`.

    All tensors are on the layer's device. A complex tensor is given as a real tensor with an
    additional last dimension of size 2.

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
        The parameter before the step; None if it was not copied.
    given_grad : Tensor
        The gradient as the optimizer received it, possibly sparse.
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
        """The learning rate η: a tensor if it is on an accelerator, else a float."""
        return float_or_tensor(self.group["lr"])

    @property
    def steps(self) -> int | Tensor:
        """The layer's step count t; 0 if the optimizer counts no steps.

        It is read from the layer's state, or from the group if the optimizer has one count per
        group. A count on an accelerator is returned as a tensor, since reading its value would
        make the CPU wait.
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

    Each optimizer in the table of ``registry.py`` has a family. A flag that depends on the
    optimizer's options is a function: it takes a parameter group and returns a bool.

    Attributes
    ----------
    name : str
        The name in the literature (``"Adam"``, ``"LAMB"``); empty if the optimizer is unknown.
    direction : callable
        Takes a :class:`Stepped` and returns the layer's :class:`Direction`, or None if d cannot be
        computed for this step.
    invertible : callable
        Whether the weights w before a step can be computed from the weights w' and the state after
        it, as ``w = (w' + η·(a·g + b·x)/(√v̂ + ε)) / (1 − η(c + λ))``. If not, the recorder copies
        the weights before each step.
    overwrites_grad : callable
        Whether the step may change ``p.grad``. If so, the recorder copies ``p.grad`` before
        the step changes it.
    grad_factor : callable, optional
        Takes the optimizer and the list of gradients that it received. Returns the factor by which
        the step scales the gradients internally, without changing ``p.grad``, for example to clip
        their norm. Returns 1 if the step scales ``p.grad`` in place.
    uses_first_grad : bool
        Whether a step with a closure uses the gradient of the closure's first call. If so, the
        recorder copies the gradient after that call.
    cacheable : bool
        Whether the directions of two layers with the same group and step count differ only in their
        tensors, and all these tensors are entries of the optimizer's state. The recorder then
        computes one direction for all such layers. If not, it computes each layer's direction in
        each step.
    provides_sums : bool
        Whether the optimizer's fused step can compute the recorded sums itself; see
        ``Lamb.measured``.
    provides_weights_before : bool
        Whether the optimizer itself copies the weights before a step, for each layer whose step is
        not fused; see ``Lars.before``.
    state_entry_before : str, optional
        Name of a state entry, a tensor without dimensions. The recorder copies it before the step,
        because ``direction`` needs that value.
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
    """Return a number as a Python float, unless it is a tensor on an accelerator.

    Reading such a tensor would make the CPU wait. It is returned as a detached tensor instead,
    without dimensions if it has one element.
    """
    if isinstance(value, Tensor):
        value = value.detach()
        if is_on_accelerator(value):
            return value.reshape(()) if value.numel() == 1 else value
    return float(value)


def is_on_accelerator(value: Any) -> bool:
    """Return whether a value is a tensor on an accelerator: reading it makes the CPU wait."""
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
    if isinstance(t, Tensor):  # expm1: t is float32, in which 1 − βᵗ would lose precision
        return -1 / torch.expm1(t * math.log(beta))
    return 1 / (1 - beta**t)


def upcast(tensor: Tensor) -> Tensor:
    """Return a tensor as float64, or as float32 on devices without float64."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()
