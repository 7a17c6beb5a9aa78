"""Directions of the optimizers of torch.optim, which apply no trust ratio.

The formulas are those of torch's documentation, or of torch's code where the two differ.

A weight decay is either decoupled (applied to the weights) or coupled: added to the gradient before
the optimizer updates its averages. A coupled decay is thus part of the averages. If the
formula also uses the gradient itself, which does not contain the decay, then
``Direction.weight_share`` contains the decay as well.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from trustlens.recording.optimizers.direction import (
    Direction,
    Group,
    Stepped,
    debias_factor,
    debias_factors,
    float_or_tensor,
    upcast,
)
from trustlens.recording.optimizers.measured import measured

_HALF: Final = (torch.bfloat16, torch.float16)


def _decoupled(group: Group) -> float:
    """Return the group's decoupled weight decay λ; 0 if the decay is added to the gradient."""
    return float(group["weight_decay"]) if group.get("decoupled_weight_decay") else 0.0


def _coupled(group: Group) -> float:
    """Return the weight decay that the group adds to the gradient; 0 if it is decoupled."""
    return 0.0 if group.get("decoupled_weight_decay") else float(group["weight_decay"])


def _kept(s: Stepped, decay: float) -> float | Tensor | None:
    """Return the value of ``Direction.kept``: 1 − ηλ with the rounding of torch's step.

    `Tensor.mul_` rounds the factor to float32 if the weights or the learning rate are float32
    tensors. A fused step does not round it: the result is then None.
    """
    if s.group.get("fused"):
        return None
    kept = float_or_tensor(1 - s.group["lr"] * decay)
    if isinstance(kept, Tensor) or s.after.dtype != torch.float32:
        return kept
    return float(np.float32(kept))


def _applied_debias_factor(s: Stepped, which: int, *, tensor: Any = None) -> float | Tensor:
    """Return 1/(1 − βᵗ) for β = ``betas[which]``, with the rounding of torch's step.

    If β is a tensor, or torch's step computes with t as a tensor (``tensor`` is true), βᵗ and
    1 − βᵗ are rounded to float32. Otherwise the result is that of :func:`debias_factor`.
    """
    beta = s.group["betas"][which]
    if s.group.get("fused") or not (tensor or isinstance(beta, Tensor)):
        return debias_factor(beta, s.steps)
    return 1 / float_or_tensor(1 - beta ** (s.state["step"] if tensor else s.steps))


def without_coupled_decay(group: Group) -> bool:
    """Return whether the group adds no decay to the gradient. If it does, d is not linear in w."""
    return _coupled(group) == 0


def adam(s: Stepped) -> Direction:
    """Return the direction of Adam or AdamW (Kingma and Ba 2015; Loshchilov and Hutter 2019).

    With AMSGrad (Reddi et al. 2018), v is the elementwise maximum of all second moments so far.
    """
    tensor = s.group.get("capturable") or s.group.get("differentiable")
    factor1, factor2 = (_applied_debias_factor(s, which, tensor=tensor) for which in (0, 1))
    momentum = s.state["exp_avg"]
    return Direction(
        rate=s.rate,
        base=momentum,
        base_share=factor1,
        variance=s.state["max_exp_avg_sq" if s.group.get("amsgrad") else "exp_avg_sq"],
        variance_share=factor2,
        epsilon=s.group["eps"],
        momentum=momentum,
        # The group says whether the decay is decoupled, as AdamW is a subclass of Adam.
        decay=_decoupled(s.group),
        kept=_kept(s, _decoupled(s.group)),
        debias1=factor1,
        debias2=factor2,
    )


def nadam(s: Stepped) -> Direction:
    """Return the direction of NAdam (Dozat 2016)."""
    # NAdam's β₁ changes in each step. In place of β₁ᵗ, the factor of g contains the product of all
    # values up to this step, and the factor of m the product up to the next step.
    group, t = s.group, s.steps
    beta1, decay = float_or_tensor(group["betas"][0]), group["momentum_decay"]
    mu, following = (beta1 * (1 - 0.5 * 0.96 ** (n * decay)) for n in (t, t + 1))
    product = float_or_tensor(s.state["mu_product"])
    factor1 = 1 / (1 - product * following)
    factor2 = _applied_debias_factor(s, 1, tensor=group["capturable"])
    grad_share = (1 - mu) / (1 - product)
    momentum = s.state["exp_avg"]
    return Direction(
        rate=s.rate,
        base=momentum,
        grad_share=grad_share,
        base_share=following * factor1,
        weight_share=grad_share * _coupled(group),
        variance=s.state["exp_avg_sq"],
        variance_share=factor2,
        epsilon=group["eps"],
        momentum=momentum,
        decay=_decoupled(group),
        kept=_kept(s, _decoupled(group)),
        debias1=factor1,
        debias2=factor2,
    )


def radam(s: Stepped) -> Direction:
    """Return the direction of RAdam (Liu et al. 2020, Algorithm 2).

    The direction is divided by √v̂ only in steps in which the variance can be estimated.
    """
    group = s.group
    t = s.state["step"] if group["capturable"] else s.steps
    beta2 = group["betas"][1]
    factor1, factor2 = (_applied_debias_factor(s, n, tensor=group["capturable"]) for n in (0, 1))
    longest = 2 / (1 - beta2) - 1
    # `length` is a small difference of large numbers: the same order of operations as in torch
    # gives the same rounding error.
    length = float_or_tensor(longest - 2 * t * (beta2**t) / (1 - beta2**t))
    above, below = (length - 4) * (length - 2) * longest, (longest - 4) * (longest - 2) * length
    momentum, variance, eps = s.state["exp_avg"], s.state["exp_avg_sq"], group["eps"]
    share, base, divides = factor1, momentum, False
    if isinstance(length, Tensor):  # on a device: reading it to choose a case would synchronize
        steady = length > 5
        scale = ((above / below) ** 0.5).nan_to_num() / factor2**0.5
        base = torch.where(steady, scale / (upcast(variance).sqrt() + eps), 1.0) * momentum
        factor2 = torch.where(steady, factor2, 1.0)
    elif length <= 5:
        factor2 = 1.0
    else:  # torch adds ε to √v, not to √v̂
        share, divides, eps = factor1 * (above / below) ** 0.5, True, eps * factor2**0.5
    return Direction(
        rate=s.rate,
        base=base,
        base_share=share,
        variance=variance,
        variance_share=factor2,
        divides=divides,
        epsilon=eps,
        momentum=momentum,
        decay=_decoupled(group),
        kept=_kept(s, _decoupled(group)),
        debias1=factor1,
        debias2=factor2,
    )


def adamax(s: Stepped) -> Direction:
    """Return the direction of Adamax (Kingma and Ba 2015, section 7.1).

    The direction is divided by an infinity norm. This is not a second moment, so it is not
    recorded.
    """
    factor1 = _applied_debias_factor(s, 0, tensor=s.group["capturable"])
    momentum = s.state["exp_avg"]
    return Direction(
        rate=s.rate,
        base=upcast(momentum) / upcast(s.state["exp_inf"]),
        base_share=factor1,
        momentum=momentum,
        debias1=factor1,
    )


def adagrad(s: Stepped) -> Direction:
    """Return the direction of Adagrad (Duchi et al. 2011), with the factor of ``lr_decay``."""
    share = 1 / (1 + (s.steps - 1) * s.group["lr_decay"])
    return Direction(
        rate=s.rate,
        grad_share=share,
        weight_share=share * _coupled(s.group),
        variance=s.state["sum"],
        epsilon=s.group["eps"],
        debias2=1.0,
    )


def rmsprop(s: Stepped) -> Direction:
    """Return the direction of RMSprop."""
    variance = s.state["square_avg"]
    if s.group["centered"]:
        mean = s.state["grad_avg"]
        variance = variance.addcmul(mean, mean, value=-1)
    if s.group["momentum"] > 0:  # the buffer is a sum of the quotients g/(√v + ε)
        buffer = s.state["momentum_buffer"]
        return Direction(
            rate=s.rate,
            base=buffer,
            base_share=1.0,
            variance=variance,
            divides=False,
            epsilon=s.group["eps"],
            momentum=buffer,
            debias1=1.0,
            debias2=1.0,
        )
    return Direction(
        rate=s.rate,
        grad_share=1.0,
        weight_share=_coupled(s.group),
        variance=variance,
        epsilon=s.group["eps"],
        debias2=1.0,
    )


def adadelta(s: Stepped) -> Direction | None:
    """Return the direction of Adadelta (Zeiler 2012, Algorithm 1).

    Return None if there is a coupled decay and the weights before the step were not copied.
    """
    # `acc_delta` is an average of the squared updates δ², and already contains this step's δ. The
    # average before the step (`old`) follows from δ² = (old + ε)·x and new = ρ·old + (1 − ρ)·δ².
    rho, eps, decay = s.group["rho"], s.group["eps"], _coupled(s.group)
    square = s.state["square_avg"]
    grad = upcast(s.grad)
    if decay:
        if s.before is None:
            return None
        grad = grad + decay * upcast(s.before)
    x = grad**2 / (upcast(square) + eps)
    below = (rho + (1 - rho) * x).clamp_(min=torch.finfo(x.dtype).tiny)  # 0 if ρ and g are 0
    old = ((upcast(s.state["acc_delta"]) - (1 - rho) * eps * x) / below).clamp_(min=0)
    return Direction(
        rate=s.rate,
        base=(old + eps).sqrt_() / (upcast(square) + eps).sqrt_() * grad,
        base_share=1.0,
        variance=square,
        divides=False,
        epsilon=eps**0.5,  # torch adds ε inside the root
        debias2=1.0,
    )


def rprop(s: Stepped) -> Direction | None:
    """Return the direction of Rprop (Riedmiller and Braun 1993), or None if the rate is 0."""
    # The state's `prev` is this step's gradient, set to 0 in the elements whose sign changed.
    rate = s.rate
    if not isinstance(rate, Tensor) and rate == 0:
        return None
    return Direction(
        rate=rate,
        base=upcast(s.state["prev"]).sign() * upcast(s.state["step_size"]) / rate,
        base_share=1.0,
    )


def asgd(s: Stepped) -> Direction | None:
    """Return the direction of ASGD (Polyak and Juditsky 1992), or None if the rate is 0."""
    # The step is w ← w − η'·(λw + g), where η' is the state's `eta` after the previous step.
    rate, decay = s.rate, s.group["lambd"]
    if not isinstance(rate, Tensor) and rate == 0:
        return None
    eta = s.entry_before
    if eta is None:  # the first step: the rate, rounded to the dtype of `eta`
        eta = torch.as_tensor(s.group["lr"], dtype=s.state["eta"].dtype)
    share = float_or_tensor(eta) / rate
    return Direction(
        rate=rate,
        grad_share=share,
        weight_share=share * _coupled(s.group) + decay * (share - 1),
        decay=decay,
    )


def adafactor(s: Stepped) -> Direction:
    """Return the direction of Adafactor (Shazeer and Stern 2018, Algorithms 4 and 5).

    As in torch, the rate is relative to the root mean square of the layer's weights. If the root
    mean square of the update exceeds the option `d`, the update is scaled down until its root mean
    square is `d`.
    """
    group, t = s.group, s.steps
    eps1, eps2 = group["eps"]
    if eps1 is None:  # torch uses the epsilon of the first parameter's dtype for the whole group
        first = next(p for p in group["params"] if p.grad is not None)
        eps1 = torch.finfo(first.dtype).eps
    rate, decay = s.rate, float(group["weight_decay"])
    if "row_var" in s.state:
        row, column = upcast(s.state["row_var"]), upcast(s.state["col_var"])
        variance = row @ column / row.mean(dim=-2, keepdim=True).clamp(min=eps1)
    else:
        variance = upcast(s.state["variance"])
    update = upcast(s.grad) * variance.clamp(min=eps1**2).rsqrt_()
    size = update.numel()
    share = _at_most_one(1 / (rate * t**0.5)) if isinstance(rate, Tensor) or rate else 1.0
    share = share / _at_least(1.0, update.norm() / (size**0.5 * group["d"]))
    kept = 1 - rate * decay
    if s.before is None:
        norm = _norm_before(upcast(s.after), update, rate * share / size**0.5, kept)
    else:
        norm = upcast(s.before).norm()
    return Direction(
        rate=rate,
        base=update,
        base_share=_at_least(eps2, norm / size**0.5) * share,
        variance=variance,
        divides=False,
        epsilon=eps1,
        decay=decay,
        kept=_kept(s, decay),
        debias2=1.0,
    )


def takes_short_steps(group: Group) -> bool:
    """Return whether Adafactor's step is certain to be shorter than ‖w‖.

    Otherwise, two different values of ‖w‖ before the step may lead to the same weights after it.
    """
    rate, most = float_or_tensor(group["lr"]), group["d"] + group["weight_decay"]
    return not isinstance(rate, Tensor) and rate * most < 0.9


def _at_most_one(value: Any) -> Any:
    return value.clamp(max=1) if isinstance(value, Tensor) else min(value, 1.0)


def _at_least(least: float, value: Tensor) -> Tensor:
    """Return max(least, value). If the value is NaN, return `least`, as Python's `max` does."""
    return torch.fmax(value, torch.full_like(value, least))


def _norm_before(after: Tensor, update: Tensor, share: Any, kept: Any) -> Tensor:
    """Return ‖w‖ before a step w' = kept·w − ‖w‖·share·update.

    ``after`` is w'. Since ‖kept·w‖² = ‖w' + ‖w‖·share·update‖², the result is the positive root of
    a quadratic equation in ‖w‖.
    """
    a = kept**2 - share**2 * update.square().sum()
    b = share * (after * update).sum()
    return (b + (b * b + a * after.square().sum()).clamp(min=0).sqrt()) / a


def sparse_adam(s: Stepped) -> Direction:
    """Return the direction of SparseAdam: Adam's in rows that have a gradient, 0 in the others."""
    # torch adds ε to √v, not to √v̂.
    factor1, factor2 = debias_factors(s.group, s.steps)
    given = s.given_grad.coalesce()
    touched = torch.zeros_like(s.grad, dtype=torch.bool)
    touched[given.indices().unbind()] = True
    momentum, variance = s.state["exp_avg"], s.state["exp_avg_sq"]
    d = upcast(momentum) / (upcast(variance).sqrt() + s.group["eps"])
    return Direction(
        rate=s.rate,
        base=d * touched,
        base_share=factor1 / factor2**0.5,
        variance=variance,
        variance_share=factor2,
        divides=False,
        epsilon=s.group["eps"] * factor2**0.5,
        momentum=momentum,
        debias1=factor1,
        debias2=factor2,
    )


def adds_momentum_to_grad(group: Group) -> bool:
    """Return whether torch's step may add the momentum to ``p.grad`` in place.

    The foreach implementation does so with Nesterov momentum, unless weight decay or `maximize`
    made it copy the gradient.
    """
    copies = group["weight_decay"] or group["maximize"] or group["fused"]
    return group["nesterov"] and not copies and group["foreach"] is not False


def sgd(s: Stepped) -> Direction | None:
    """Return the direction of SGD.

    Return None if d must be computed from the change of the weights but the learning rate is 0.
    """
    # Without momentum, the state may still hold the buffer of earlier steps with momentum.
    buffer = s.state.get("momentum_buffer") if s.group["momentum"] else None
    if buffer is not None and s.group.get("fused") and s.after.dtype in _HALF:
        return measured(s, 0.0)  # torch's fused step applies another buffer than it stores
    decay = _coupled(s.group)
    if buffer is None:
        return Direction(rate=s.rate, grad_share=1.0, weight_share=decay)
    if not s.group["nesterov"]:
        return Direction(rate=s.rate, base=buffer, base_share=1.0, momentum=buffer, debias1=1.0)
    return Direction(
        rate=s.rate,
        base=buffer,
        grad_share=1.0,
        base_share=float(s.group["momentum"]),
        weight_share=decay,
        momentum=buffer,
        debias1=1.0,
    )


def is_rmsprop_invertible(group: Group) -> bool:
    """Return whether RMSprop's weights before a step can be computed from the state after it."""
    return group["momentum"] > 0 or without_coupled_decay(group)
