"""The LAMB and LARS of this and of other packages.

The trust ratio is the one that was applied: as the optimizer keeps it or, where it keeps none, by
its own rule from the norms that are recorded (:mod:`trustlens.trust_ratio`).
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from trustlens.recording.optimizers.direction import (
    Direction,
    Family,
    Group,
    RatioRule,
    Stepped,
    always,
    debias_factors,
    number,
    wide,
)
from trustlens.recording.optimizers.measured import measured
from trustlens.trust_ratio import LAMB_VARIANTS, LARS_VARIANTS, lamb_ratio, lars_ratio


def lamb_direction(s: Stepped, options: Group) -> Direction:
    """Return the direction of a LAMB whose options are those of ``trustlens.optim.Lamb``.

    Its state has ``exp_avg`` and ``exp_avg_sq``, and ``trust_ratio`` where it keeps that.
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
        trust_ratio=_applied(s, s.state.get("trust_ratio")),
    )


def _own_lamb(s: Stepped) -> Direction:
    """Return the direction of ``trustlens.optim.Lamb``, whose state has all that it multiplied."""
    d, debias = lamb_direction(s, s.group), s.group["debias"]
    applied: Any = s.rate if d.trust_ratio is None else s.rate * number(d.trust_ratio)
    if debias in ("rate", "first"):
        factor1, factor2 = debias_factors(s.group, s.steps)
        applied = applied * factor1 / (factor2**0.5 if debias == "rate" else 1)
    first = s.group["decay"] != "inside"  # before the ratio, by the rate alone
    kept = 1 - s.rate * float(s.group["weight_decay"]) if first else None
    return replace(d, rate=applied, kept=kept)


def _undoes_lamb(group: Group) -> bool:
    """Tell whether what the decay leaves of w, 1 − ηrλ, is a safe divisor."""
    rate, clip, decay = number(group["lr"]), group["clip_ratio"], float(group["weight_decay"])
    if group["decay"] != "inside" or not decay:
        return True
    return clip is not None and not isinstance(rate, Tensor) and rate * clip[1] * decay < 0.5


def lars_direction(s: Stepped) -> Direction:
    """Return the direction of a LARS: d = g, the ratio going into the momentum."""
    buffer = s.state.get("momentum_buffer")
    return Direction(
        rate=s.rate,
        grad_share=1.0,
        momentum=buffer,
        decay=float(s.group["weight_decay"]),
        debias1=None if buffer is None else 1.0,
        trust_ratio=_applied(s, s.state.get("trust_ratio")),
    )


def _applied(s: Stepped, ratio: Any) -> Tensor | None:
    """Return a ratio, a number or a tensor, as a tensor without dimensions on the device."""
    if ratio is None or isinstance(ratio, Tensor):
        return None if ratio is None else ratio.detach().reshape(())
    return torch.full((), float(ratio), dtype=torch.float32, device=s.after.device)


@functools.lru_cache(maxsize=64)
def _lamb_rule(variant: str, **switches: Any) -> RatioRule:
    """Return the rule of a variant with these switches; the same object for the same ones."""
    return functools.partial(lamb_ratio, {**LAMB_VARIANTS[variant], **switches})


@functools.lru_cache(maxsize=64)
def _lars_rule(variant: str, **switches: Any) -> RatioRule:
    options = {**LARS_VARIANTS[variant], **switches}

    def rule(
        *, undecayed_norm: NDArray[np.float64], **norms: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        return lars_ratio(options, grad_norm=undecayed_norm, **norms)  # d = g

    return rule


def _ruled(
    s: Stepped, variant: str, *, debias: bool | str, weight_decay: float, **switches: Any
) -> Direction:
    """Return the direction of a LAMB that does not keep its ratio."""
    options = {**s.group, "debias": debias, "weight_decay": weight_decay}
    return replace(
        lamb_direction(s, options), trust_ratio=None, ratio_rule=_lamb_rule(variant, **switches)
    )


def _by_ratio(s: Stepped, ratio: Any, decay: float | None = None) -> Direction | None:
    """Return d as the weights show it, Δw = −η(r·d + λw), r being known."""
    d = measured(s)
    applied = _applied(s, ratio)
    if d is None or applied is None:
        return None
    return replace(
        d,
        update_share=d.update_share / applied,
        weight_share=-decay / applied if decay else 0.0,
        momentum=s.state["exp_avg"],
        decay=decay,
        trust_ratio=applied,
    )


def _keeps_its_ratio(s: Stepped) -> Any:
    """Return the ratio in the state, where it lies also if `adam` has it left unused."""
    unused = s.group.get("adam", getattr(s.optimizer, "adam", False))
    return 1.0 if unused is True else s.state.get("trust_ratio")


def _pytorch_lamb(s: Stepped) -> Direction:
    # cybertronai's, and torch-optimizer's, which can debias.
    debias = "rate" if getattr(s.optimizer, "debias", False) else False
    d = lamb_direction(s, {**s.group, "debias": debias})
    return replace(d, trust_ratio=_applied(s, _keeps_its_ratio(s)))


def _pytorch_optimizer_lamb(s: Stepped) -> Direction | None:
    group, decay = s.group, float(s.group["weight_decay"])
    if group["weight_decouple"] and group.get("fixed_decay") and decay:  # λ in place of ηλ
        if isinstance(s.rate, Tensor) or s.rate == 0:
            return None
        decay /= s.rate
    ratio = _keeps_its_ratio(s)
    if group.get("rectify"):  # by a rate of RAdam's, which may leave a step out; a λ inside is too
        return _by_ratio(s, ratio, decay if group["weight_decouple"] else 0.0)
    options = {
        **group,
        "debias": False if group.get("adam_debias") else "first",
        "weight_decay": decay,
    }
    return replace(lamb_direction(s, options), trust_ratio=_applied(s, ratio))


def _timm_lamb(s: Stepped) -> Direction | None:
    group, decay = s.group, float(s.group["weight_decay"])
    decoupled = bool(group.get("decoupled_decay"))
    adapts = bool(group["always_adapt"] or decay)
    if decoupled and group.get("corrected_weight_decay"):  # η²/η_max in place of η
        if isinstance(s.rate, Tensor):
            return None
        decay *= s.rate / group.get("max_lr_snapshot", s.optimizer.defaults["lr"])
    d = _ruled(
        s,
        "timm",
        debias=bool(group["bias_correction"]),
        weight_decay=decay,
        always_adapt=adapts,
        **({"decay": "first"} if decoupled else {}),
        **({"clip_ratio": (0.0, 1.0)} if group["trust_clip"] else {}),
    )
    if not group.get("caution"):
        return d
    momentum = s.state["exp_avg"]  # where it points as g does; Liang et al. 2024
    cautious = (momentum.sign() * s.grad.sign() > 0).to(momentum.dtype)
    return replace(d, base=momentum * cautious / cautious.mean().clamp(min=1e-3))


def _apex_lamb(s: Stepped) -> Direction:
    decay = float(s.group["weight_decay"])
    return _ruled(
        s,
        "apex",
        debias=bool(s.group["bias_correction"]),
        weight_decay=decay if s.optimizer.adam_w_mode else 0.0,  # else it is in the gradient
        always_adapt=bool(s.optimizer.use_nvlamb or decay),
    )


class _DeepSpeedLamb:
    """Reads the ratios from a list in the order of the parameters that have a gradient."""

    def __init__(self) -> None:
        version = str(getattr(sys.modules.get("deepspeed"), "__version__", ""))
        # It put its debias factors into the rate; now it debiases as the article.
        self.is_old = [int(n) for n in re.findall(r"\d+", version)[:3]] <= [0, 19, 8]
        self._last: Tensor | None = None
        self._by_state: dict[int, Tensor] = {}

    def __call__(self, s: Stepped) -> Direction:
        group = s.group
        d = _ruled(
            s,
            "deepspeed",
            debias=group["bias_correction"] and ("rate" if self.is_old else True),
            weight_decay=float(group["weight_decay"]),
            clip_ratio=(group["min_coeff"], group["max_coeff"]),
        )
        if s.optimizer.eps_mode == 0:  # ε inside the root
            below = (wide(s.state["exp_avg_sq"]) + group["eps"]).sqrt_()
            base = wide(s.state["exp_avg"]) / below
            d = replace(d, base=base, divides=False, epsilon=group["eps"] ** 0.5)
        self._read(s.optimizer)
        ratio = self._by_state.get(id(s.state))
        return d if ratio is None else replace(d, trust_ratio=_applied(s, ratio), ratio_rule=None)

    def _read(self, optimizer: Any) -> None:
        """Look up the ratios of a step once."""
        ratios: list[Tensor] = optimizer.lamb_coeffs
        if ratios and self._last is ratios[-1]:
            return
        stepped = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        self._last, self._by_state = (ratios[-1] if ratios else None), {}
        if len(stepped) == len(ratios):  # not if gradients were handed to `step`
            pairs = zip(stepped, ratios, strict=True)
            self._by_state = {id(optimizer.state[p]): ratio for p, ratio in pairs}


def _bitsandbytes_lamb(s: Stepped) -> Direction | None:
    if not _follows_its_group(s):
        return None
    decay = float(s.group["weight_decay"])
    first = s.state["state1"]
    if first.dtype != torch.float32:  # of 8 bits; Adam's step, without a ratio
        d = measured(s, decay)
        return d and replace(d, trust_ratio=_applied(s, 1.0))
    state = {**s.state, "exp_avg": first, "exp_avg_sq": s.state["state2"]}
    d = lamb_direction(replace(s, state=state), {**s.group, "debias": True})
    return replace(d, trust_ratio=_bitsandbytes_ratio(s))


def _bitsandbytes_lars(s: Stepped) -> Direction | None:
    # The ratio stands outside the momentum, λw within it.
    if not _follows_its_group(s):
        return None
    buffer = s.state["state1"]
    if buffer.dtype != torch.float32:
        d = measured(s, 0.0)
        return d and replace(d, trust_ratio=_applied(s, 1.0))
    return Direction(
        rate=s.rate,
        base=buffer,
        base_share=1.0,
        momentum=buffer,
        debias1=1.0,
        trust_ratio=_bitsandbytes_ratio(s),
    )


def _follows_its_group(s: Stepped) -> bool:
    """Tell whether the group has the options of each parameter, and no old 8-bit form is used."""
    manager = s.optimizer.mng
    overrides = [*manager.pid2config.values(), *manager.index2config.values()]
    harmless = {"optim_bits", "min_8bit_size"}
    return all(harmless.issuperset(each) for each in overrides) and getattr(
        s.optimizer.args, "block_wise", True
    )


def _bitsandbytes_ratio(s: Stepped) -> Tensor | None:
    """Return min(1, bound·‖w‖ / ‖u‖), ‖u‖ being kept as its square by all but the CPU's code."""
    bound = s.optimizer.args.max_unorm
    if s.before is None or bound <= 0:
        return _applied(s, 1.0) if bound <= 0 else None
    norm: Tensor = s.state["unorm_vec"].reshape(())
    if norm.device.type != "cpu":
        norm = norm.sqrt()
    most = bound * s.before.float().norm()  # in the optimizer's own precision
    return torch.where(norm > most, most / norm, 1.0)


def _timm_lars(s: Stepped) -> Direction:
    group = s.group
    rule = _lars_rule(
        "timm",
        trust_coefficient=group["trust_coeff"],
        eps=group["eps"],
        always_adapt=bool(group["always_adapt"]),
        trust_clip=bool(group["trust_clip"]),
    )
    return replace(lars_direction(s), ratio_rule=rule)


def _torch_optimizer_lars(s: Stepped) -> Direction:
    group = s.group
    rule = _lars_rule(
        "torch-optimizer", trust_coefficient=group["trust_coefficient"], eps=group["eps"]
    )
    return replace(lars_direction(s), ratio_rule=rule)


def _pytorch_optimizer_lars(s: Stepped) -> Direction:
    d = lars_direction(s)
    if s.given_grad.dim() <= 1:  # plain SGD, without decay
        return replace(d, decay=0.0, trust_ratio=_applied(s, 1.0))
    return replace(d, ratio_rule=_pytorch_optimizer_lars_rule(s.group["trust_coefficient"]))


@functools.lru_cache(maxsize=64)
def _pytorch_optimizer_lars_rule(coefficient: float) -> RatioRule:
    def rule(
        *,
        weight_norm: NDArray[np.float64],
        undecayed_norm: NDArray[np.float64],
        weight_decay: NDArray[np.float64],
        **_: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        below = undecayed_norm + weight_decay * weight_norm  # with g = 0 too, unlike elsewhere
        with np.errstate(all="ignore"):
            ratio = coefficient * weight_norm / below
        return np.where((weight_norm == 0) | (below == 0), 1.0, ratio)

    return rule


def _clip(optimizer: Any, grads: Sequence[Tensor]) -> float | Tensor:
    """Return what brings the norm of all gradients together down to the optimizer's bound."""
    bound = optimizer.defaults["max_grad_norm"]
    if bound is None:
        return 1.0
    total = torch.stack([grad.norm().to(grads[0].device) for grad in grads]).norm()
    return 1 / (total / bound).clamp(min=1)


def _uphill(optimizer: Any, grads: Sequence[Tensor]) -> float:  # noqa: ARG001 — as all of them
    return -1.0 if getattr(optimizer, "maximize", False) else 1.0


def _by_its_state(s: Stepped) -> Direction | None:
    """Return what can be told of an optimizer of unknown class: it may be a copy of a LAMB's."""
    if s.state.keys() >= {"exp_avg", "exp_avg_sq", "weight_norm", "adam_norm", "trust_ratio"}:
        return _by_ratio(s, _keeps_its_ratio(s))
    return measured(s)


LAMB: Final = Family("LAMB", _own_lamb, _undoes_lamb, yields=True)
LARS: Final = Family("LARS", lars_direction, yields=True, keeps_weights=True)
UNKNOWN: Final = Family("", _by_its_state, spoils_grad=always)

_OVERWRITES_GRAD: Final[Mapping[str, Any]] = {"spoils_grad": always, "uses_first_grad": True}

_THIRD_PARTY: Final[Mapping[tuple[str, str], Family]] = {
    ("pytorch_lamb", "Lamb"): Family("LAMB", _pytorch_lamb, variant="pytorch-lamb"),
    ("torch_optimizer", "Lamb"): Family("LAMB", _pytorch_lamb, variant="torch-optimizer"),
    ("pytorch_optimizer", "Lamb"): Family(
        "LAMB", _pytorch_optimizer_lamb, variant="pytorch_optimizer"
    ),
    # Older ones of timm's clip p.grad itself: it is within the bound then.
    ("timm", "Lamb"): Family("LAMB", _timm_lamb, variant="timm", grad_factor=_clip),
    ("apex", "FusedLAMB"): Family(
        "LAMB", _apex_lamb, variant="apex", grad_factor=_clip, **_OVERWRITES_GRAD
    ),
    ("bitsandbytes", "lamb"): Family("LAMB", _bitsandbytes_lamb, variant="bitsandbytes"),
    ("torch_optimizer", "LARS"): Family("LARS", _torch_optimizer_lars, variant="torch-optimizer"),
    ("timm", "Lars"): Family("LARS", _timm_lars, variant="timm", **_OVERWRITES_GRAD),
    ("pytorch_optimizer", "LARS"): Family(
        "LARS", _pytorch_optimizer_lars, grad_factor=_uphill, **_OVERWRITES_GRAD
    ),
    ("bitsandbytes", "lars"): Family("LARS", _bitsandbytes_lars),
}
"""By package and the class that defines ``step``; all of bitsandbytes have one, and a name each."""


def third_party(optimizer: Optimizer) -> Family | None:
    """Return the family of another package's LAMB or LARS; None if it is none that is known.

    A subclass counts as its parent only if it steps as its parent does.
    """
    step = inspect.unwrap(type(optimizer).step)
    package, name = step.__module__.partition(".")[0], step.__qualname__.rpartition(".")[0]
    if package == "bitsandbytes":
        name = getattr(optimizer, "optimizer_name", "")
    if (package, name) == ("deepspeed", "FusedLamb"):
        deepspeed = _DeepSpeedLamb()
        return Family("LAMB", deepspeed, variant="deepspeed" if deepspeed.is_old else None)
    return _THIRD_PARTY.get((package, name))
