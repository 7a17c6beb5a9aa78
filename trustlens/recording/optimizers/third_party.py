"""Directions of LAMB and LARS from other packages, and of optimizers of unknown class.

The recorded trust ratio is the one that the optimizer applied. It is read from the optimizer's
state if the optimizer stores it. Otherwise the package's own rule
(:class:`trustlens.trust_ratio.RatioRule`) computes it from the recorded norms.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trustlens.families import LAMB
from trustlens.recording.optimizers.direction import Direction, Family, Stepped, upcast
from trustlens.recording.optimizers.measured import measured
from trustlens.recording.optimizers.own import applied_ratio, lamb_direction, lars_direction
from trustlens.trust_ratio import (
    LAMB_VARIANTS,
    LARS_VARIANTS,
    RatioRule,
    lamb_ratio,
    lars_ratio,
    pytorch_optimizer_lars_ratio,
)


def _lamb_with_rule(
    s: Stepped, variant: str, *, debias: bool | str, weight_decay: float, **switches: Any
) -> Direction:
    """Return the direction of a LAMB that does not store its trust ratio.

    ``variant`` is a key of ``LAMB_VARIANTS``; ``switches`` override options of that variant.
    """
    options = {**s.group, "debias": debias, "weight_decay": weight_decay}
    rule = RatioRule.of(lamb_ratio, {**LAMB_VARIANTS[variant], **switches})
    return replace(lamb_direction(s, options), trust_ratio=None, ratio_rule=rule)


def _measured_by_ratio(s: Stepped, ratio: Any, decay: float | None = None) -> Direction | None:
    """Return d computed from Δw = −η(r·d + λw), where ``ratio`` is r and ``decay`` is λ.

    Return None if the ratio is None, or if :func:`measured` returns None. If ``decay`` is None, the
    result describes −Δw/(ηr), which contains the unknown decay.
    """
    d = measured(s)
    applied = applied_ratio(s, ratio)
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


def _stored_ratio(s: Stepped) -> Any:
    """Return the trust ratio in the state, or 1 if the option `adam` turns the ratio off.

    Return None if the state contains no trust ratio.
    """
    unused = s.group.get("adam", getattr(s.optimizer, "adam", False))
    return 1.0 if unused is True else s.state.get("trust_ratio")


def pytorch_lamb(s: Stepped) -> Direction:
    """Return the direction of LAMB from pytorch-lamb or torch-optimizer.

    Only torch-optimizer's LAMB has the option ``debias``.
    """
    debias = "rate" if getattr(s.optimizer, "debias", False) else False
    d = lamb_direction(s, {**s.group, "debias": debias})
    return replace(d, trust_ratio=applied_ratio(s, _stored_ratio(s)))


def pytorch_optimizer_lamb(s: Stepped) -> Direction | None:
    """Return the direction of pytorch_optimizer's LAMB.

    Return None if the direction depends on a learning rate that is 0 or on an accelerator, or on a
    trust ratio that is missing.
    """
    group, decay = s.group, float(s.group["weight_decay"])
    if group["weight_decouple"] and group.get("fixed_decay") and decay:  # w decays by λ, not by ηλ
        if isinstance(s.rate, Tensor) or s.rate == 0:
            return None
        decay /= s.rate
    ratio = _stored_ratio(s)
    if group.get("rectify"):  # RAdam's rate; some steps skip the update and its decay
        return _measured_by_ratio(s, ratio, decay if group["weight_decouple"] else 0.0)
    options = {
        **group,
        "debias": False if group.get("adam_debias") else "first",
        "weight_decay": decay,
    }
    return replace(lamb_direction(s, options), trust_ratio=applied_ratio(s, ratio))


def timm_lamb(s: Stepped) -> Direction | None:
    """Return the direction of timm's LAMB.

    Return None if the decay depends on a learning rate that is on an accelerator.
    """
    group, decay = s.group, float(s.group["weight_decay"])
    decoupled = bool(group.get("decoupled_decay"))
    adapts = bool(group["always_adapt"] or decay)
    if decoupled and group.get("corrected_weight_decay"):  # η²/η_max instead of η
        if isinstance(s.rate, Tensor):
            return None
        decay *= s.rate / group.get("max_lr_snapshot", s.optimizer.defaults["lr"])
    d = _lamb_with_rule(
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
    # Cautious LAMB (Liang et al. 2024) uses only the elements of m that have the sign of g.
    momentum = s.state["exp_avg"]
    cautious = (momentum.sign() * s.grad.sign() > 0).to(momentum.dtype)
    return replace(d, base=momentum * cautious / cautious.mean().clamp(min=1e-3))


def apex_lamb(s: Stepped) -> Direction:
    """Return the direction of apex's FusedLAMB."""
    decay = float(s.group["weight_decay"])
    return _lamb_with_rule(
        s,
        "apex",
        debias=bool(s.group["bias_correction"]),
        weight_decay=decay if s.optimizer.adam_w_mode else 0.0,  # else it is added to the gradient
        always_adapt=bool(s.optimizer.use_nvlamb or decay),
    )


def deepspeed_lamb() -> Family:
    """Return a new family for one FusedLamb object of DeepSpeed."""
    direction = _DeepSpeedLamb()
    return Family(LAMB, direction, variant="deepspeed" if direction.is_old else None)


class _DeepSpeedLamb:
    """Computes the directions of one FusedLamb object of DeepSpeed.

    An instance is the ``direction`` function of that optimizer's family. The optimizer stores its
    trust ratios in a list: one for each parameter with a gradient, in the parameters' order.
    """

    def __init__(self) -> None:
        version = str(getattr(sys.modules.get("deepspeed"), "__version__", ""))
        # Up to 0.19.8 the debias factors are part of the rate. In later versions they are part of
        # the direction.
        self.is_old = [int(n) for n in re.findall(r"\d+", version)[:3]] <= [0, 19, 8]
        self._last: Tensor | None = None
        self._by_state: dict[int, Tensor] = {}

    def __call__(self, s: Stepped) -> Direction:
        group = s.group
        d = _lamb_with_rule(
            s,
            "deepspeed",
            debias=group["bias_correction"] and ("rate" if self.is_old else True),
            weight_decay=float(group["weight_decay"]),
            clip_ratio=(group["min_coeff"], group["max_coeff"]),
        )
        if s.optimizer.eps_mode == 0:  # ε inside the root
            below = (upcast(s.state["exp_avg_sq"]) + group["eps"]).sqrt_()
            base = upcast(s.state["exp_avg"]) / below
            d = replace(d, base=base, divides=False, epsilon=group["eps"] ** 0.5)
        self._read(s.optimizer)
        ratio = self._by_state.get(id(s.state))
        return (
            d if ratio is None else replace(d, trust_ratio=applied_ratio(s, ratio), ratio_rule=None)
        )

    def _read(self, optimizer: Any) -> None:
        """Match the optimizer's list of trust ratios with its states, once per step."""
        ratios: list[Tensor] = optimizer.lamb_coeffs
        if ratios and self._last is ratios[-1]:
            return
        stepped = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        self._last, self._by_state = (ratios[-1] if ratios else None), {}
        if len(stepped) == len(ratios):  # not if the caller passed gradients to `step`
            pairs = zip(stepped, ratios, strict=True)
            self._by_state = {id(optimizer.state[p]): ratio for p, ratio in pairs}


def bitsandbytes_lamb(s: Stepped) -> Direction | None:
    """Return the direction of bitsandbytes' LAMB.

    Return None if a parameter does not use its group's options.
    """
    if not _follows_its_group(s):
        return None
    decay = float(s.group["weight_decay"])
    first = s.state["state1"]
    if first.dtype != torch.float32:  # with 8-bit states, the step is Adam's, without a trust ratio
        d = measured(s, decay)
        return d and replace(d, trust_ratio=applied_ratio(s, 1.0))
    state = {**s.state, "exp_avg": first, "exp_avg_sq": s.state["state2"]}
    d = lamb_direction(replace(s, state=state), {**s.group, "debias": True})
    return replace(d, trust_ratio=_bitsandbytes_ratio(s))


def bitsandbytes_lars(s: Stepped) -> Direction | None:
    """Return the direction of bitsandbytes' LARS.

    The direction is the momentum, which contains λw but not the trust ratio. Return None if a
    parameter does not use its group's options.
    """
    if not _follows_its_group(s):
        return None
    buffer = s.state["state1"]
    if buffer.dtype != torch.float32:
        d = measured(s, 0.0)
        return d and replace(d, trust_ratio=applied_ratio(s, 1.0))
    return Direction(
        rate=s.rate,
        base=buffer,
        base_share=1.0,
        momentum=buffer,
        debias1=1.0,
        trust_ratio=_bitsandbytes_ratio(s),
    )


def _follows_its_group(s: Stepped) -> bool:
    """Return whether all parameters use their group's options.

    Return False also if the optimizer quantizes its 8-bit states in whole tensors, not in blocks.
    """
    manager = s.optimizer.mng
    overrides = [*manager.pid2config.values(), *manager.index2config.values()]
    harmless = {"optim_bits", "min_8bit_size"}
    return all(harmless.issuperset(each) for each in overrides) and getattr(
        s.optimizer.args, "block_wise", True
    )


def _bitsandbytes_ratio(s: Stepped) -> Tensor | None:
    """Return the trust ratio min(1, bound·‖w‖ / ‖u‖), or 1 if there is no bound.

    The bound is the optimizer's ``max_unorm``, and u is the update. Return None if there is a
    bound, but the weights before the step were not copied. The state's ``unorm_vec`` holds ‖u‖ on
    the CPU and ‖u‖² on other devices.
    """
    bound = s.optimizer.args.max_unorm
    if s.before is None or bound <= 0:
        return applied_ratio(s, 1.0) if bound <= 0 else None
    norm: Tensor = s.state["unorm_vec"].reshape(())
    if norm.device.type != "cpu":
        norm = norm.sqrt()
    most = bound * s.before.float().norm()  # in float32, as in the optimizer
    return torch.where(norm > most, most / norm, 1.0)


def timm_lars(s: Stepped) -> Direction:
    """Return the direction of timm's LARS."""
    group = s.group
    switches = {
        "trust_coefficient": group["trust_coeff"],
        "eps": group["eps"],
        "always_adapt": bool(group["always_adapt"]),
        "trust_clip": bool(group["trust_clip"]),
    }
    return _lars_with_rule(s, "timm", switches)


def torch_optimizer_lars(s: Stepped) -> Direction:
    """Return the direction of torch-optimizer's LARS."""
    switches = {"trust_coefficient": s.group["trust_coefficient"], "eps": s.group["eps"]}
    return _lars_with_rule(s, "torch-optimizer", switches)


def _lars_with_rule(s: Stepped, variant: str, switches: dict[str, Any]) -> Direction:
    """Return the direction of a LARS that does not store its trust ratio.

    ``variant`` is a key of ``LARS_VARIANTS``; ``switches`` override options of that variant.
    """
    rule = RatioRule.of(lars_ratio, {**LARS_VARIANTS[variant], **switches})
    return replace(lars_direction(s), ratio_rule=rule)


def pytorch_optimizer_lars(s: Stepped) -> Direction:
    """Return the direction of pytorch_optimizer's LARS."""
    d = lars_direction(s)
    if s.given_grad.dim() <= 1:  # such layers get the step of SGD: no decay, no trust ratio
        return replace(d, decay=0.0, trust_ratio=applied_ratio(s, 1.0))
    options = {"trust_coefficient": s.group["trust_coefficient"]}
    return replace(d, ratio_rule=RatioRule.of(pytorch_optimizer_lars_ratio, options))


def clip_factor(optimizer: Any, grads: Sequence[Tensor]) -> float | Tensor:
    """Return the factor that clips the joint norm of all gradients to `max_grad_norm`.

    The factor is 1 if the norm is within the bound, or if there is no bound.
    """
    bound = optimizer.defaults["max_grad_norm"]
    if bound is None:
        return 1.0
    total = torch.stack([grad.norm().to(grads[0].device) for grad in grads]).norm()
    return 1 / (total / bound).clamp(min=1)


def sign_factor(optimizer: Any, grads: Sequence[Tensor]) -> float:  # noqa: ARG001 — signature of `Family.grad_factor`
    """Return −1 if the optimizer maximizes, else 1."""
    return -1.0 if getattr(optimizer, "maximize", False) else 1.0


def unknown(s: Stepped) -> Direction | None:
    """Return the direction of an optimizer of unknown class, computed by :func:`measured`.

    If the state has the entries of pytorch-lamb, the optimizer is taken for a copy of that code,
    and the trust ratio in the state is recorded.
    """
    if s.state.keys() >= {"exp_avg", "exp_avg_sq", "weight_norm", "adam_norm", "trust_ratio"}:
        return _measured_by_ratio(s, _stored_ratio(s))
    return measured(s)
