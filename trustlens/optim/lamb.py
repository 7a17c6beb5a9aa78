"""LAMB (You et al. 2019, Algorithm 2), with the variants of other packages as options."""

# torch's foreach operations have private names only:
# ruff: noqa: SLF001
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from trustlens.errors import UsageError
from trustlens.kernels.tensors import upcast_half
from trustlens.optim.base import LayerwiseOptimizer, Work
from trustlens.optim.foreach import (
    check_number,
    descend_,
    gradients,
    norms,
    scale_,
    scale_each_,
    trust_ratios,
)
from trustlens.optim.fused import Rows
from trustlens.optim.fused import check as check_fused
from trustlens.optim.fused_cpu import DEBIAS, LAMB, Options
from trustlens.trust_ratio import LAMB_DEFAULTS, check_option


class Lamb(LayerwiseOptimizer):
    r"""LAMB: Adam's update with weight decay, scaled by a trust ratio for each layer.

    For each parameter tensor (layer) w with gradient g, in the t-th step of this layer (t ≥ 1)::

        m ← β₁m + (1−β₁)g                    v ← β₂v + (1−β₂)g²
        m̂ = m / (1−β₁ᵗ)                      v̂ = v / (1−β₂ᵗ)
        u = m̂ / (√v̂ + ε) + λw                r₁ = ‖w‖,  r₂ = ‖u‖
        r = min(r₁ / r₂, 10);  1 if r₁ or r₂ is 0
        w ← w − η·r·u

    This is Algorithm 2 of You et al. [1]_ with the conventions of the article "An intuitive
    understanding of the LAMB optimizer": r = 1 if a norm is 0, and r ≤ 10. Half-precision
    parameters are updated in float32 and rounded once. The CPU does not wait for a GPU in a step.

    ``optimizer.state[p]`` contains ``exp_avg`` (m) and ``exp_avg_sq`` (v) in the parameter's dtype,
    and float32 scalars. ``step`` is t, on the CPU. ``trust_ratio`` is the r of the last step, on
    the parameter's device. With ``max_grad_norm``, ``grad_divisor`` is the number by which the last
    step divided g, on the parameter's device.

    Parameters
    ----------
    params
        Parameters, named parameters or parameter groups. A group may set each option below.
    lr
        Learning rate η: a number or a tensor of one element.
    betas
        β₁ and β₂, in [0, 1).
    eps
        ε, which is added to √v̂.
    weight_decay
        Weight decay λ.
    debias
        True: use m̂ and v̂ as above. False: use m and v in place of m̂ and v̂ (version 3 of [1]_).
        ``"rate"``: use m and v, and η·√(1−β₂ᵗ)/(1−β₁ᵗ) in place of η; this does not affect r.
        ``"first"``: use m and v, and η/(1−β₁ᵗ) in place of η.
    decay
        ``"inside"``: u includes λw, as above. ``"first"``: u does not include λw; instead,
        w ← (1−ηλ)w before the norms are computed. ``"beside"``: like ``"first"``, but r₁ is the
        norm of w before this decay.
    clip_ratio
        Lower and upper bound of r, or None for no bounds.
    clip_weight_norm
        Upper bound of r₁, so that r₁ = min(‖w‖, bound); None for no bound.
    trust_coefficient
        Factor c of the ratio, so that r = c·r₁/r₂ before ``clip_ratio`` is applied.
    ratio_eps
        Number added to r₂ in the denominator of r.
    always_adapt
        If False, r = 1 in groups without weight decay.
    unit_at_zero
        True: r = 1 if r₁ is 0. False: r = 0 if r₁ is 0, before ``clip_ratio`` is applied. A layer
        whose weights are all 0 then does not change, unless the lower bound of r is above 0.
    max_grad_norm
        Upper bound of the joint norm of all gradients of all groups. If the norm is larger, the
        step uses copies of the gradients that are scaled down to this norm; ``p.grad`` does not
        change. None for no bound.
    fused
        Whether to use fused steps. A fused step takes two passes over a layer and allocates no
        temporary tensors. It needs dense contiguous tensors: float32 on the CPU (compiled loop);
        float32, float16 or bfloat16 on a GPU (Triton kernels).
        None: use a fused step for each parameter that allows it, and torch's foreach operations for
        the others. Within ``torch.compile``, or while a CUDA graph is captured, use foreach
        operations for all. True: raise an error if a parameter does not allow a fused step.
        False: use foreach operations for all.

    Attributes
    ----------
    measures : bool
        Whether fused steps also compute the sums that the recorder stores; set by the recorder.
        It does not affect the parameters or the state.
    measured : list of (list of Tensor, Tensor)
        The sums of the last step: for each parameter group and device, the parameters that were
        stepped fused, and a tensor of their sums. The tensor is float64 of shape (parameters,
        sums), in the order of ``trustlens.kernels.sums.SUMS``, on the parameters' device. The list
        is empty unless ``measures`` is True.

    Raises
    ------
    UsageError
        If an option is out of range, a gradient is sparse, a parameter is complex, or ``fused`` is
        True and a parameter cannot be stepped fused.

    References
    ----------
    .. [1] You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes",
       2019, arXiv:1904.00962.

    Examples
    --------
    >>> model = torch.nn.Linear(3, 2)
    >>> optimizer = Lamb(model.parameters(), lr=0.01, **LAMB_VARIANTS["timm"])
    """

    _name = "Lamb"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        debias: bool | Literal["rate", "first"] = True,
        decay: Literal["inside", "first", "beside"] = "inside",
        clip_ratio: tuple[float, float] | None = (0.0, 10.0),
        clip_weight_norm: float | None = None,
        trust_coefficient: float = 1.0,
        ratio_eps: float = 0.0,
        always_adapt: bool = True,
        unit_at_zero: bool = True,
        max_grad_norm: float | None = None,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "debias": debias,
            "decay": decay,
            "clip_ratio": clip_ratio,
            "clip_weight_norm": clip_weight_norm,
            "trust_coefficient": trust_coefficient,
            "ratio_eps": ratio_eps,
            "always_adapt": always_adapt,
            "unit_at_zero": unit_at_zero,
            "max_grad_norm": max_grad_norm,
            "fused": fused,
        }
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for of_layer in self.state.values():  # loading may have moved the counts to a GPU
            of_layer["step"] = of_layer["step"].cpu()

    def _fused_state(
        self, group: dict[str, Any]
    ) -> tuple[Callable[[Tensor], dict[str, Any]], tuple[str, ...]]:
        del group  # the same for all groups
        return self._state, ("step", "exp_avg", "exp_avg_sq", "trust_ratio")

    def _step_groups(self, work: list[Work]) -> None:
        total = self._total_grad_norm(work)
        for group, fused, lists in work:
            for rows in fused:
                self._step_fused(rows, group, total)
            for params in lists:
                self._step_list(params, group, total)

    def _total_grad_norm(self, work: list[Work]) -> Tensor | None:
        """Return the joint norm of all gradients; None if no group has ``max_grad_norm``."""
        if all(group["max_grad_norm"] is None for group in self.param_groups):
            return None
        each = [norms(gradients(params)) for part in work for params in part.lists]
        each += [rows.grad_norms() for part in work for rows in part.fused]
        if not each:
            return None
        return torch.linalg.vector_norm(torch.cat([n.to(each[0]) for n in each]))

    def _step_fused(self, rows: Rows, group: dict[str, Any], total: Tensor | None) -> None:
        """Step ``rows``, parameters of one group on one device, with the fused kernels.

        ``total`` is the result of :meth:`_total_grad_norm`.
        """
        divisor = self._divisor(rows.params, group["max_grad_norm"], total)
        beta1, beta2 = group["betas"]
        options = Options(
            rate=group["lr"],
            beta1=beta1,
            beta2=beta2,
            epsilon=group["eps"],
            decay=group["weight_decay"],
            divisor=1.0 if divisor is None else divisor,
            debias=DEBIAS[group["debias"]],
            decays_inside=group["decay"] == "inside",
            ratio_before_decay=group["decay"] != "first",
        )
        self._step_rows(rows, LAMB, options, group)

    def _step_list(self, params: list[Tensor], group: dict[str, Any], total: Tensor | None) -> None:
        """Step parameters of one group, device and dtype with torch's foreach operations.

        ``total`` is the result of :meth:`_total_grad_norm`.
        """
        directions, rate_factors = self._directions(params, group, total)
        lr, decay = group["lr"], group["weight_decay"]
        weight_norms = norms(params)
        if decay and group["decay"] == "inside":
            torch._foreach_add_(directions, upcast_half(params), alpha=decay)
        elif decay:
            scale_(params, 1 - lr * decay)
            if group["decay"] == "first":
                weight_norms = norms(params)
        ratios = self._ratios(weight_norms, norms(directions), group)
        if rate_factors is not None:
            torch._foreach_mul_(directions, rate_factors)
        scale_each_(directions, ratios)
        descend_(params, directions, lr)
        self._store_ratios(params, ratios)

    def _directions(
        self, params: list[Tensor], group: dict[str, Any], total: Tensor | None
    ) -> tuple[list[Tensor], list[float] | None]:
        """Update m and v; return m̂/(√v̂+ε) of each layer, and the factor by which to multiply its η.

        The factors are None unless ``debias`` is ``"rate"`` or ``"first"``.
        """
        grads = self._clipped(params, group["max_grad_norm"], total)
        states = [self._state(p) for p in params]
        averages = [s["exp_avg"] for s in states]
        squares = [s["exp_avg_sq"] for s in states]
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(averages, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)

        steps = [s["step"] for s in states]
        torch._foreach_add_(steps, 1)
        times: list[float] = [step.item() for step in steps]  # on the CPU: does not synchronize
        corrections1 = [1 - beta1**t for t in times]
        corrections2 = [math.sqrt(1 - beta2**t) for t in times]
        debias = group["debias"]
        denominators = torch._foreach_sqrt(upcast_half(squares))
        if debias is True:
            torch._foreach_div_(denominators, corrections2)
        torch._foreach_add_(denominators, group["eps"])
        directions = torch._foreach_div(upcast_half(averages), denominators)
        if debias is True:
            torch._foreach_div_(directions, corrections1)
        rate_factors = None
        if debias == "rate":
            rate_factors = [c2 / c1 for c1, c2 in zip(corrections1, corrections2, strict=True)]
        elif debias == "first":
            rate_factors = [1 / c1 for c1 in corrections1]
        return list(directions), rate_factors

    def _clipped(
        self, params: list[Tensor], bound: float | None, total: Tensor | None
    ) -> list[Tensor]:
        """Return the gradients, scaled down if the joint norm `total` exceeds `bound`."""
        grads = gradients(params)
        divisor = self._divisor(params, bound, total)
        if divisor is None:
            return grads
        wide = upcast_half(grads)
        divided = torch._foreach_div(wide, divisor.to(wide[0].dtype))
        return [g.to(p.dtype) for g, p in zip(divided, params, strict=True)]

    def _divisor(
        self, params: list[Tensor], bound: float | None, total: Tensor | None
    ) -> Tensor | None:
        """Return the number to divide the gradients by, and store it in the parameters' state.

        Return None and store nothing if there is no bound.
        """
        if bound is None or total is None:
            return None
        divisor = (total / bound).clamp(min=1).to(params[0].device)
        stored = divisor.float()
        for p in params:
            self.state[p]["grad_divisor"] = stored
        return divisor

    def _state(self, p: Tensor) -> dict[str, Any]:
        state = self.state[p]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
            state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return state

    def _ratios(
        self, weight_norms: Tensor, direction_norms: Tensor, group: dict[str, Any]
    ) -> Tensor:
        # This is the formula of `trustlens.trust_ratio.lamb_ratio`. The norms are r₁ and r₂.
        adapted = direction_norms != 0
        if not group["always_adapt"]:
            adapted &= group["weight_decay"] != 0
        if group["unit_at_zero"]:
            adapted &= weight_norms != 0
        if group["clip_weight_norm"] is not None:
            weight_norms = weight_norms.clamp(max=group["clip_weight_norm"])
        return trust_ratios(
            group["trust_coefficient"] * weight_norms,
            direction_norms + group["ratio_eps"],
            adapted,
            group["clip_ratio"],
        )

    def _check_options(self, group: dict[str, Any]) -> None:
        for name in ("lr", "eps", "weight_decay"):
            check_number(self._name, group, name)
        betas = group["betas"]
        if not (isinstance(betas, (tuple, list)) and len(betas) == 2):
            raise UsageError(
                f"{self._name} got betas={betas!r}: give two numbers, such as (0.9, 0.999)"
            )
        for name, beta in zip(("betas[0]", "betas[1]"), betas, strict=True):
            check_number(self._name, {name: beta}, name, below=1)
        for name in LAMB_DEFAULTS:
            check_option(self._name, name, group[name])
        check_fused(self._name, group)
