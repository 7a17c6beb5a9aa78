"""LAMB, as the article defines it; what other packages do differently are options."""

# torch offers its operations on lists of tensors under private names only:
# ruff: noqa: SLF001
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, Literal, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from trustlens.errors import UsageError
from trustlens.optim.foreach import (
    check_number,
    descend_,
    gradients,
    norms,
    scale_,
    scale_each_,
    trust_ratios,
    widen,
    with_gradient,
)
from trustlens.optim.fused import Fused, Rows, check_devices
from trustlens.optim.fused import check as check_fused
from trustlens.optim.fused_cpu import DEBIAS, LAMB, Options
from trustlens.trust_ratio import LAMB_DEFAULTS, check_option


class Lamb(Optimizer):
    r"""LAMB: Adam's update with the decay inside it, scaled layer by layer by a trust ratio.

    For each parameter tensor w with gradient g, at its own step t (counted from 1)::

        m ← β₁m + (1−β₁)g                    v ← β₂v + (1−β₂)g²
        m̂ = m / (1−β₁ᵗ)                      v̂ = v / (1−β₂ᵗ)
        u = m̂ / (√v̂ + ε) + λw                r₁ = ‖w‖,  r₂ = ‖u‖
        r = min(r₁ / r₂, 10);  1 if r₁ or r₂ is 0
        w ← w − η·r·u

    This is Algorithm 2 of You et al. [1]_ with the article's conventions (r = 1 where a norm is
    0; r ≤ 10). ``optimizer.state[p]`` holds ``step`` (float32 on the CPU, no dimensions),
    ``exp_avg`` (m) and ``exp_avg_sq`` (v) in the parameter's dtype, ``trust_ratio`` (the r that
    was applied in the last step: float32 on the parameter's device, no dimensions), and, with
    ``max_grad_norm``, ``grad_divisor`` (what g was divided by, likewise). Half-precision
    parameters are updated in float32 and rounded once. Nothing waits for the device.

    Parameters
    ----------
    params
        Parameters, named parameters or groups; each option below can be set by group.
    lr
        Learning rate η: a number or a tensor of one element.
    betas
        β₁ and β₂, in [0, 1).
    eps
        ε, outside the root.
    weight_decay
        λ.
    debias
        True: m̂ and v̂ as above. False: m and v in their place (version 3 of [1]_).
        ``"rate"``: m and v, and η·√(1−β₂ᵗ)/(1−β₁ᵗ) in place of η, outside r.
        ``"first"``: m and v, and η/(1−β₁ᵗ) in place of η.
    decay
        ``"inside"``: λw is part of u. ``"first"``: w ← (1−ηλ)w before anything is measured,
        u without λw. ``"beside"``: the same, but r₁ is that of w before its decay.
    clip_ratio
        Lower and upper bound of r, or None.
    clip_weight_norm
        Upper bound of r₁, or None: r₁ = min(‖w‖, bound).
    trust_coefficient
        c in r = c·r₁/r₂ (before the bounds).
    ratio_eps
        Added to r₂ in the ratio's denominator.
    always_adapt
        If False, r = 1 in groups without weight decay.
    unit_at_zero
        If False, a layer of zero weights has r = 0 (within the bounds) and so does not move.
    max_grad_norm
        The largest norm of all gradients together, of all groups; above it, the step uses
        gradients scaled down to it. ``p.grad`` is left as it is. None: no such bound.
    fused
        None: dense contiguous parameters are stepped in two passes, without temporaries, where
        they can be: float32 on the CPU by a compiled loop, where a C compiler is at hand; float32,
        float16 and bfloat16 on a GPU by Triton kernels, where there is Triton. Others, and all
        within ``torch.compile`` or a CUDA graph, by torch's operations on lists. True: an error
        where they cannot be. False: all by lists.

    Attributes
    ----------
    measures : bool
        Whether the fused step also yields the sums that a recorder stores.
    measured : list of (list of Tensor, Tensor)
        Those of the last step: parameters, and their sums in the order of
        ``trustlens.recording.statistics.SUMS``, float64 (parameters, 16) on their device. What
        was stepped by lists is not in it. What is written does not depend on it.

    Raises
    ------
    UsageError
        An option is out of its range, a gradient sparse, a parameter complex, or ``fused`` is
        True where that cannot be.

    References
    ----------
    .. [1] You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes",
       2019, arXiv:1904.00962.

    Examples
    --------
    >>> model = torch.nn.Linear(3, 2)
    >>> optimizer = Lamb(model.parameters(), lr=0.01, **LAMB_VARIANTS["timm"])
    """

    measures: bool = False

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
        self._forget()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with options of its own where it names any.

        Raises
        ------
        UsageError
            An option is out of its range.
        """
        _check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        check_devices("Lamb", self.param_groups[-1])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for of_layer in self.state.values():  # a checkpoint mapped to a device took them along
            of_layer["step"] = of_layer["step"].cpu()
        for group in self.param_groups:
            group.setdefault("fused", None)  # an older checkpoint has none
        self._forget()

    def _forget(self) -> None:
        self._fused = Fused("Lamb")
        self.measured: list[tuple[list[Tensor], Tensor]] = []

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Do one step; `closure`, if any, computes the loss and the gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.measured = []
        divided = [
            self._fused.divide(place, group, self.state, self._state, _ENTRIES)
            for place, group in enumerate(self.param_groups)
        ]
        fused = [rows for rows, _ in divided]
        lists = [with_gradient(rest, "Lamb") for _, rest in divided]
        total = self._total_grad_norm(fused, lists)
        for group, rows_of_group, lists_of_group in zip(
            self.param_groups, fused, lists, strict=True
        ):
            for rows in rows_of_group:
                self._step_fused(rows, group, total)
            for params in lists_of_group:
                self._step(params, group, total)
        return loss

    def _total_grad_norm(
        self, fused: list[list[Rows]], lists: list[list[list[Tensor]]]
    ) -> Tensor | None:
        """Return the norm of all gradients together, if a group bounds it."""
        if all(group["max_grad_norm"] is None for group in self.param_groups):
            return None
        each = [norms(gradients(params)) for of_group in lists for params in of_group]
        each += [rows.grad_norms() for of_group in fused for rows in of_group]
        if not each:
            return None
        return torch.linalg.vector_norm(torch.cat([n.to(each[0]) for n in each]))

    def _step_fused(self, rows: Rows, group: dict[str, Any], total: Tensor | None) -> None:
        """Step the layers of one group and device that need no lists."""
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
        sums = rows.step(
            LAMB, options, lambda above, below: _ratios(above, below, group), measures=self.measures
        )
        if sums is not None:
            self.measured.append((rows.params, sums))

    def _step(self, params: list[Tensor], group: dict[str, Any], total: Tensor | None) -> None:
        """Step parameters of one group, one device and one dtype."""
        directions, rate_factors = self._directions(params, group, total)
        lr, decay = group["lr"], group["weight_decay"]
        weight_norms = norms(params)
        if decay and group["decay"] == "inside":
            torch._foreach_add_(directions, widen(params), alpha=decay)
        elif decay:
            scale_(params, 1 - lr * decay)
            if group["decay"] == "first":
                weight_norms = norms(params)
        ratios = _ratios(weight_norms, norms(directions), group)
        if rate_factors is not None:
            torch._foreach_mul_(directions, rate_factors)
        scale_each_(directions, ratios)
        descend_(params, directions, lr)
        for p, ratio in zip(params, ratios.float().unbind(), strict=True):
            self.state[p]["trust_ratio"] = ratio

    def _directions(
        self, params: list[Tensor], group: dict[str, Any], total: Tensor | None
    ) -> tuple[list[Tensor], list[float] | None]:
        """Move m and v; return m̂/(√v̂+ε) of each layer, and factors of the rate if it has any."""
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
        times: list[float] = [step.item() for step in steps]  # they lie on the CPU: no waiting
        corrections1 = [1 - beta1**t for t in times]
        corrections2 = [math.sqrt(1 - beta2**t) for t in times]
        debias = group["debias"]
        denominators = torch._foreach_sqrt(widen(squares))
        if debias is True:
            torch._foreach_div_(denominators, corrections2)
        torch._foreach_add_(denominators, group["eps"])
        directions = torch._foreach_div(widen(averages), denominators)
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
        """Return the gradients, scaled down where all together are longer than `bound`."""
        grads = gradients(params)
        divisor = self._divisor(params, bound, total)
        if divisor is None:
            return grads
        wide = widen(grads)
        divided = torch._foreach_div(wide, divisor.to(wide[0].dtype))
        return [g.to(p.dtype) for g, p in zip(divided, params, strict=True)]

    def _divisor(
        self, params: list[Tensor], bound: float | None, total: Tensor | None
    ) -> Tensor | None:
        """Return what the gradients are divided by, if they are bounded, and note it."""
        if bound is None or total is None:
            return None
        divisor = (total / bound).clamp(min=1).to(params[0].device)
        noted = divisor.float()
        for p in params:
            self.state[p]["grad_divisor"] = noted
        return divisor

    def _state(self, p: Tensor) -> dict[str, Any]:
        state = self.state[p]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
            state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return state


_ENTRIES: Final = ("step", "exp_avg", "exp_avg_sq", "trust_ratio")
"""What of a parameter's state a fused step reads and writes."""


def _ratios(weight_norms: Tensor, direction_norms: Tensor, group: dict[str, Any]) -> Tensor:
    """Return the trust ratios of layers from r₁ and r₂, all of shape (layers,)."""
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


def _check(group: dict[str, Any]) -> None:
    """Require that every option of a group is in its range."""
    for name in ("lr", "eps", "weight_decay"):
        check_number("Lamb", group, name)
    betas = group["betas"]
    if not (isinstance(betas, (tuple, list)) and len(betas) == 2):
        raise UsageError(f"Lamb got betas={betas!r}: give two numbers, such as (0.9, 0.999)")
    for name, beta in zip(("betas[0]", "betas[1]"), betas, strict=True):
        check_number("Lamb", {name: beta}, name, below=1)
    for name in LAMB_DEFAULTS:
        check_option("Lamb", name, group[name])
    check_fused("Lamb", group)
