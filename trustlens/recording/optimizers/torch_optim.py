"""The optimizers of torch.optim, which have no trust ratio of their own.

Formulas are those of their documentation; where it and the code differ, of the code. A coupled
decay is part of the gradient that the averages are made of, so that it shows in d by itself or,
where the gradient stands in the formula, as ``c·w``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from trustlens.recording.optimizers.direction import (
    Direction,
    Family,
    Group,
    Stepped,
    always,
    debias_factor,
    debias_factors,
    number,
    wide,
)
from trustlens.recording.optimizers.measured import measured

_HALF: Final = (torch.bfloat16, torch.float16)


def _decoupled(group: Group) -> float:
    """Return λ; 0 where the decay goes into the gradient."""
    return float(group["weight_decay"]) if group.get("decoupled_weight_decay") else 0.0


def _coupled(group: Group) -> float:
    """Return the decay that goes into the gradient; 0 where it is decoupled."""
    return 0.0 if group.get("decoupled_weight_decay") else float(group["weight_decay"])


def _kept(s: Stepped, decay: float) -> float | Tensor | None:
    """Return 1 − ηλ as `Tensor.mul_` has it: rounded to the weights' float32, or the rate's."""
    if s.group.get("fused"):
        return None
    kept = number(1 - s.group["lr"] * decay)
    if isinstance(kept, Tensor) or s.after.dtype != torch.float32:
        return kept
    return float(np.float32(kept))


def _debias_factor(s: Stepped, which: int, *, tensor: Any = None) -> float | Tensor:
    """Return 1/(1 − βᵗ) as the step had it.

    `tensor` tells whether t is a tensor to the step: then βᵗ, like that of a β that is one, and
    1 − βᵗ are rounded to its float32.
    """
    beta = s.group["betas"][which]
    if s.group.get("fused") or not (tensor or isinstance(beta, Tensor)):
        return debias_factor(beta, s.steps)
    return 1 / number(1 - beta ** (s.state["step"] if tensor else s.steps))


def without_coupled_decay(group: Group) -> bool:
    """Tell whether no decay goes into the gradient: w would then stand under the fraction."""
    return _coupled(group) == 0


def _adam(s: Stepped) -> Direction:
    # AMSGrad divides by the largest v so far (Reddi et al. 2018).
    tensor = s.group.get("capturable") or s.group.get("differentiable")
    factor1, factor2 = (_debias_factor(s, which, tensor=tensor) for which in (0, 1))
    momentum = s.state["exp_avg"]
    return Direction(
        rate=s.rate,
        base=momentum,
        base_share=factor1,
        variance=s.state["max_exp_avg_sq" if s.group.get("amsgrad") else "exp_avg_sq"],
        variance_share=factor2,
        epsilon=s.group["eps"],
        momentum=momentum,
        # A subclass of Adam, AdamW is told by its groups alone.
        decay=_decoupled(s.group),
        kept=_kept(s, _decoupled(s.group)),
        debias1=factor1,
        debias2=factor2,
    )


def _nadam(s: Stepped) -> Direction:
    # Dozat 2016: gradient and momentum each with a factor of its own. What stands for β₁ᵗ is a
    # product of the decay rates of all steps, this one and, for m, the next.
    group, t = s.group, s.steps
    beta1, decay = number(group["betas"][0]), group["momentum_decay"]
    mu, following = (beta1 * (1 - 0.5 * 0.96 ** (n * decay)) for n in (t, t + 1))
    product = number(s.state["mu_product"])
    factor1 = 1 / (1 - product * following)
    factor2 = _debias_factor(s, 1, tensor=group["capturable"])
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


def _radam(s: Stepped) -> Direction:
    # Liu et al. 2020, Algorithm 2: divided only once the variance can be told.
    group = s.group
    t = s.state["step"] if group["capturable"] else s.steps
    beta2 = group["betas"][1]
    factor1, factor2 = (_debias_factor(s, n, tensor=group["capturable"]) for n in (0, 1))
    longest = 2 / (1 - beta2) - 1
    # A small difference of large numbers: in the order in which torch has it.
    length = number(longest - 2 * t * (beta2**t) / (1 - beta2**t))
    above, below = (length - 4) * (length - 2) * longest, (longest - 4) * (longest - 2) * length
    momentum, variance, eps = s.state["exp_avg"], s.state["exp_avg_sq"], group["eps"]
    share, base, divides = factor1, momentum, False
    if isinstance(length, Tensor):  # on an accelerator: which of the two it is, is not read
        steady = length > 5
        scale = ((above / below) ** 0.5).nan_to_num() / factor2**0.5
        base = torch.where(steady, scale / (wide(variance).sqrt() + eps), 1.0) * momentum
        factor2 = torch.where(steady, factor2, 1.0)
    elif length <= 5:
        factor2 = 1.0
    else:  # in torch's code ε stands beside √v, not √v̂
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


def _adamax(s: Stepped) -> Direction:
    # Kingma and Ba 2015, section 7.1: divided by an infinity norm, which is no second moment.
    factor1 = _debias_factor(s, 0, tensor=s.group["capturable"])
    momentum = s.state["exp_avg"]
    return Direction(
        rate=s.rate,
        base=wide(momentum) / wide(s.state["exp_inf"]),
        base_share=factor1,
        momentum=momentum,
        debias1=factor1,
    )


def _adagrad(s: Stepped) -> Direction:
    # Duchi et al. 2011; the rate falls by itself with `lr_decay`.
    share = 1 / (1 + (s.steps - 1) * s.group["lr_decay"])
    return Direction(
        rate=s.rate,
        grad_share=share,
        weight_share=share * _coupled(s.group),
        variance=s.state["sum"],
        epsilon=s.group["eps"],
        debias2=1.0,
    )


def _rmsprop(s: Stepped) -> Direction:
    variance = s.state["square_avg"]
    if s.group["centered"]:
        mean = s.state["grad_avg"]
        variance = variance.addcmul(mean, mean, value=-1)
    if s.group["momentum"] > 0:  # what was divided is in the buffer
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


def _adadelta(s: Stepped) -> Direction | None:
    # Zeiler 2012, Algorithm 1. The state has the average of δ² with this step's δ in it already:
    # it is taken out first. δ² = (old + ε)·x, new = ρ·old + (1 − ρ)·δ².
    rho, eps, decay = s.group["rho"], s.group["eps"], _coupled(s.group)
    square = s.state["square_avg"]
    grad = wide(s.grad)
    if decay:
        if s.before is None:
            return None
        grad = grad + decay * wide(s.before)
    x = grad**2 / (wide(square) + eps)
    below = (rho + (1 - rho) * x).clamp_(min=torch.finfo(x.dtype).tiny)  # ρ may be 0, and g
    old = ((wide(s.state["acc_delta"]) - (1 - rho) * eps * x) / below).clamp_(min=0)
    return Direction(
        rate=s.rate,
        base=(old + eps).sqrt_() / (wide(square) + eps).sqrt_() * grad,
        base_share=1.0,
        variance=square,
        divides=False,
        epsilon=eps**0.5,  # it stands inside the root: never below it
        debias2=1.0,
    )


def _rprop(s: Stepped) -> Direction | None:
    # Riedmiller and Braun 1993. `prev` is the gradient without the elements that turned.
    rate = s.rate
    if not isinstance(rate, Tensor) and rate == 0:
        return None
    return Direction(
        rate=rate,
        base=wide(s.state["prev"]).sign() * wide(s.state["step_size"]) / rate,
        base_share=1.0,
    )


def _asgd(s: Stepped) -> Direction | None:
    # Polyak and Juditsky 1992: w ← w − η'·(λw + g), η' being what the step before left.
    rate, decay = s.rate, s.group["lambd"]
    if not isinstance(rate, Tensor) and rate == 0:
        return None
    eta = s.noted
    if eta is None:  # in its first step: the rate, in the digits in which the state keeps it
        eta = torch.as_tensor(s.group["lr"], dtype=s.state["eta"].dtype)
    share = number(eta) / rate
    return Direction(
        rate=rate,
        grad_share=share,
        weight_share=share * _coupled(s.group) + decay * (share - 1),
        decay=decay,
    )


def _adafactor(s: Stepped) -> Direction:
    # Shazeer and Stern 2018, Algorithms 4 and 5, in torch's form: the rate is relative to the
    # layer's root mean square R, and the update is clipped at `d`.
    group, t = s.group, s.steps
    eps1, eps2 = group["eps"]
    if eps1 is None:  # in torch's code that of the first one's dtype holds for the whole group
        first = next(p for p in group["params"] if p.grad is not None)
        eps1 = torch.finfo(first.dtype).eps
    rate, decay = s.rate, float(group["weight_decay"])
    if "row_var" in s.state:
        row, column = wide(s.state["row_var"]), wide(s.state["col_var"])
        variance = row @ column / row.mean(dim=-2, keepdim=True).clamp(min=eps1)
    else:
        variance = wide(s.state["variance"])
    update = wide(s.grad) * variance.clamp(min=eps1**2).rsqrt_()
    size = update.numel()
    share = _least(1 / (rate * t**0.5)) if isinstance(rate, Tensor) or rate else 1.0
    share = share / _at_least(1.0, update.norm() / (size**0.5 * group["d"]))
    kept = 1 - rate * decay
    if s.before is None:
        norm = _norm_before(wide(s.after), update, rate * share / size**0.5, kept)
    else:
        norm = wide(s.before).norm()
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


def _stays_near(group: Group) -> bool:
    """Tell whether ‖Δw‖ < ‖w‖ for sure: else two norms before the step may fit the one after."""
    rate, most = number(group["lr"]), group["d"] + group["weight_decay"]
    return not isinstance(rate, Tensor) and rate * most < 0.9


def _least(value: Any) -> Any:
    return value.clamp(max=1) if isinstance(value, Tensor) else min(value, 1.0)


def _at_least(least: float, value: Tensor) -> Tensor:
    """Return the larger one; as Python's `max`, which is torch's code here, the first for NaN."""
    return torch.fmax(value, torch.full_like(value, least))


def _norm_before(after: Tensor, update: Tensor, share: Any, kept: Any) -> Tensor:
    """Return ‖w‖ from w' = kept·w − ‖w‖·share·q: the positive root of a quadratic equation."""
    a = kept**2 - share**2 * update.square().sum()
    b = share * (after * update).sum()
    return (b + (b * b + a * after.square().sum()).clamp(min=0).sqrt()) / a


def _sparse_adam(s: Stepped) -> Direction:
    # Adam for the rows that have a gradient; the others stay, with their averages. In torch's
    # code ε stands beside √v, not √v̂.
    factor1, factor2 = debias_factors(s.group, s.steps)
    given = s.given_grad.coalesce()
    touched = torch.zeros_like(s.grad, dtype=torch.bool)
    touched[given.indices().unbind()] = True
    momentum, variance = s.state["exp_avg"], s.state["exp_avg_sq"]
    d = wide(momentum) / (wide(variance).sqrt() + s.group["eps"])
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


def _adds_into_grad(group: Group) -> bool:
    """Tell whether torch may add the momentum to ``p.grad`` itself: its loop over lists does."""
    copies = group["weight_decay"] or group["maximize"] or group["fused"]
    return group["nesterov"] and not copies and group["foreach"] is not False


def _sgd(s: Stepped) -> Direction | None:
    # A buffer may be left from when there was momentum.
    buffer = s.state.get("momentum_buffer") if s.group["momentum"] else None
    if buffer is not None and s.group.get("fused") and s.after.dtype in _HALF:
        return measured(s, 0.0)  # torch's fused step keeps another buffer than it applies
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


ADAM = Family("Adam", _adam, always, alike=True)
ADAMW = replace(ADAM, name="AdamW")  # what it does, the groups say
SGD = Family("SGD", _sgd, always, spoils_grad=_adds_into_grad, uses_first_grad=True, alike=True)
NADAM = Family("NAdam", _nadam, without_coupled_decay)
RADAM = Family("RAdam", _radam, always, alike=True)
ADAMAX = Family("Adamax", _adamax, always)
ADAGRAD = Family("Adagrad", _adagrad, without_coupled_decay, alike=True)
RMSPROP = Family(
    "RMSprop",
    _rmsprop,
    lambda group: group["momentum"] > 0 or without_coupled_decay(group),
    alike=True,
)
RPROP = Family("Rprop", _rprop, always)
ADADELTA = Family("Adadelta", _adadelta, without_coupled_decay)
ASGD = Family("ASGD", _asgd, always, note="eta")
ADAFACTOR = Family("Adafactor", _adafactor, _stays_near)
SPARSE_ADAM = Family("SparseAdam", _sparse_adam, always)
