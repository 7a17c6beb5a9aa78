"""LARS (You et al. 2017), with the variants of the paper and of other packages as options."""

# torch's foreach operations have private names only:
# ruff: noqa: SLF001
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from trustlens.kernels.tensors import upcast_half
from trustlens.optim.base import LayerwiseOptimizer, Work
from trustlens.optim.foreach import (
    check_number,
    descend_,
    gradients,
    norms,
    scale_each_,
    trust_ratios,
)
from trustlens.optim.fused import Rows
from trustlens.optim.fused import check as check_fused
from trustlens.optim.fused_cpu import LARS, Options
from trustlens.trust_ratio import check_option


class Lars(LayerwiseOptimizer):
    r"""LARS: SGD with momentum and weight decay, scaled by a trust ratio for each layer.

    For each parameter tensor (layer) w with gradient g::

        r = c·‖w‖ / (‖g‖ + λ‖w‖);  1 if ‖w‖ or ‖g‖ is 0
        b ← μb + r·(g + λw)
        w ← w − η·b

    This is Algorithm 1 of You et al. [1]_ with two differences. First, the learning rate η
    multiplies the momentum buffer b, as in `torch.optim.SGD`. In the paper, η multiplies the terms
    that are added to b. Second, the default of the trust coefficient c is 1, as in the article "An
    intuitive understanding of the LAMB optimizer"; in the paper it is 0.001. With c = 1 and without
    momentum and decay, η is the length of a step relative to ‖w‖.

    ``optimizer.state[p]`` contains two entries. ``momentum_buffer`` is b in the parameter's dtype;
    it is missing if the momentum is 0. ``trust_ratio`` is the r of the last step: a float32 scalar
    on the parameter's device. The CPU does not wait for a GPU in a step.

    Parameters
    ----------
    params
        Parameters, named parameters or parameter groups. A group may set each option below.
    lr
        Learning rate η: a number or a tensor of one element.
    momentum
        Momentum μ, in [0, 1).
    weight_decay
        Weight decay λ.
    trust_coefficient
        Trust coefficient c.
    norm
        ``"sum"``: r as above. ``"combined"``: r = c·‖w‖ / ‖g + λw‖, and 1 if either norm is 0.
    eps
        Number added to the denominator of r.
    always_adapt
        If False, r = 1 in groups without weight decay.
    fused
        As in :class:`trustlens.optim.Lamb`.

    Attributes
    ----------
    measures, measured
        As in :class:`trustlens.optim.Lamb`.
    before : dict of Tensor to Tensor
        For each parameter whose last step was not fused, a copy of its weights before that step.
        Empty unless ``measures`` is True.

    Raises
    ------
    UsageError
        If an option is out of range, a gradient is sparse, a parameter is complex, or ``fused`` is
        True and a parameter cannot be stepped fused.

    References
    ----------
    .. [1] You et al., "Large Batch Training of Convolutional Networks", 2017, arXiv:1708.03888.

    Examples
    --------
    >>> model = torch.nn.Linear(3, 2)
    >>> optimizer = Lars(model.parameters(), lr=0.01, weight_decay=1e-4)
    """

    _name = "Lars"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        trust_coefficient: float = 1.0,
        norm: Literal["sum", "combined"] = "sum",
        eps: float = 0.0,
        always_adapt: bool = True,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "norm": norm,
            "eps": eps,
            "always_adapt": always_adapt,
            "fused": fused,
        }
        super().__init__(params, defaults)

    def _reset_measured(self) -> None:
        super()._reset_measured()
        self.before: dict[Tensor, Tensor] = {}

    def _fused_state(
        self, group: dict[str, Any]
    ) -> tuple[Callable[[Tensor], dict[str, Any]], tuple[str, ...]]:
        if group["momentum"]:
            return self._with_buffer, ("momentum_buffer", "trust_ratio")
        return self.state.__getitem__, ("trust_ratio",)

    def _step_groups(self, work: list[Work]) -> None:
        for group, fused, lists in work:
            for rows in fused:
                self._step_fused(rows, group)
            for params in lists:
                self._step_list(params, group)

    def _step_fused(self, rows: Rows, group: dict[str, Any]) -> None:
        """Step ``rows``, parameters of one group on one device, with the fused kernels."""
        options = Options(
            rate=group["lr"],
            beta1=group["momentum"],
            decay=group["weight_decay"],
            ratio_of_sum=group["norm"] == "sum",
        )
        self._step_rows(rows, LARS, options, group)

    def _step_list(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Step parameters of one group, device and dtype with torch's foreach operations."""
        if self.measures:
            self.before.update((p, p.clone()) for p in params)
        grads = upcast_half(gradients(params))
        directions = list(
            torch._foreach_add(grads, upcast_half(params), alpha=group["weight_decay"])
        )
        measured = norms(grads if group["norm"] == "sum" else directions)
        ratios = self._ratios(norms(params), measured, group)
        scale_each_(directions, ratios)
        if group["momentum"]:
            buffers = [self._with_buffer(p)["momentum_buffer"] for p in params]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, directions)
            directions = buffers
        descend_(params, directions, group["lr"])
        self._store_ratios(params, ratios)

    def _with_buffer(self, p: Tensor) -> dict[str, Any]:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return state

    def _ratios(
        self, weight_norms: Tensor, direction_norms: Tensor, group: dict[str, Any]
    ) -> Tensor:
        # This is the formula of `trustlens.trust_ratio.lars_ratio`. `direction_norms` contains ‖g‖,
        # or ‖g + λw‖ if group["norm"] is "combined".
        decay = group["weight_decay"]
        adapted = (weight_norms != 0) & (direction_norms != 0)
        if not group["always_adapt"]:
            adapted &= decay != 0
        if group["norm"] == "sum":
            direction_norms = direction_norms + decay * weight_norms
        coefficient = group["trust_coefficient"]
        return trust_ratios(coefficient * weight_norms, direction_norms + group["eps"], adapted)

    def _check_options(self, group: dict[str, Any]) -> None:
        for name in ("lr", "weight_decay", "trust_coefficient", "eps"):
            check_number(self._name, group, name)
        check_number(self._name, group, "momentum", below=1)
        for name in ("norm", "always_adapt"):
            check_option(self._name, name, group[name])
        check_fused(self._name, group)
