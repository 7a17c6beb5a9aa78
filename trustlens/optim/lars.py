"""LARS, as its paper and the article define it; what other packages do differently are options."""

# torch offers its operations on lists of tensors under private names only:
# ruff: noqa: SLF001
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from trustlens.optim.foreach import (
    check_number,
    descend_,
    gradients,
    norms,
    scale_each_,
    trust_ratios,
    widen,
    with_gradient,
)
from trustlens.optim.fused import Fused, Rows, check_devices
from trustlens.optim.fused import check as check_fused
from trustlens.optim.fused_cpu import LARS, Options
from trustlens.trust_ratio import check_option


class Lars(Optimizer):
    r"""LARS: SGD with momentum, scaled layer by layer by a trust ratio.

    For each parameter tensor w with gradient g::

        r = c·‖w‖ / (‖g‖ + λ‖w‖);  1 if ‖w‖ or ‖g‖ is 0
        b ← μb + r·(g + λw)
        w ← w − η·b

    This is Algorithm 1 of You et al. [1]_, whose trust coefficient (0.001 there) is c and whose
    rate η multiplies b here as in `torch.optim.SGD`, not what goes into it. The article has
    c = 1, which is the default: η then is the length of a step relative to the layer's weights.
    ``optimizer.state[p]`` holds ``momentum_buffer`` (b, in the parameter's dtype; not without
    momentum) and ``trust_ratio`` (the r that was applied in the last step: float32 on the
    parameter's device, no dimensions). Nothing waits for the device.

    Parameters
    ----------
    params
        Parameters, named parameters or groups; each option below can be set by group.
    lr
        Learning rate η: a number or a tensor of one element.
    momentum
        μ, in [0, 1).
    weight_decay
        λ.
    trust_coefficient
        c.
    norm
        ``"sum"``: as above. ``"combined"``: r = c·‖w‖ / ‖g + λw‖; 1 if either norm is 0.
    eps
        Added to the ratio's denominator.
    always_adapt
        If False, r = 1 in groups without weight decay.
    fused
        As in :class:`trustlens.optim.Lamb`.

    Attributes
    ----------
    measures, measured
        As in :class:`trustlens.optim.Lamb`.
    before : dict of Tensor to Tensor
        With ``measures``: the weights from before the last step of the parameters that were not
        stepped by the loop.

    Raises
    ------
    UsageError
        An option is out of its range, a gradient sparse, a parameter complex, or ``fused`` is
        True where that cannot be.

    References
    ----------
    .. [1] You et al., "Large Batch Training of Convolutional Networks", 2017, arXiv:1708.03888.

    Examples
    --------
    >>> model = torch.nn.Linear(3, 2)
    >>> optimizer = Lars(model.parameters(), lr=0.01, weight_decay=1e-4)
    """

    measures: bool = False

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
        check_devices("Lars", self.param_groups[-1])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("fused", None)  # an older checkpoint has none
        self._forget()

    def _forget(self) -> None:
        self._fused = Fused("Lars")
        self.measured: list[tuple[list[Tensor], Tensor]] = []
        self.before: dict[Tensor, Tensor] = {}

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
        self.measured, self.before = [], {}
        divided = [self._divide(place) for place in range(len(self.param_groups))]
        lists = [with_gradient(rest, "Lars") for _, rest in divided]
        for group, (fused, _), rest in zip(self.param_groups, divided, lists, strict=True):
            for rows in fused:
                self._step_fused(rows, group)
            for params in rest:
                self._step(params, group)
        return loss

    def _divide(self, place: int) -> tuple[list[Rows], list[Tensor]]:
        group = self.param_groups[place]
        if group["momentum"]:
            entries, make_state = ("momentum_buffer", "trust_ratio"), self._with_buffer
        else:
            entries, make_state = ("trust_ratio",), self.state.__getitem__
        return self._fused.divide(place, group, self.state, make_state, entries)

    def _step_fused(self, rows: Rows, group: dict[str, Any]) -> None:
        """Step the layers of one group and device that need no lists."""
        options = Options(
            rate=group["lr"],
            beta1=group["momentum"],
            decay=group["weight_decay"],
            ratio_of_sum=group["norm"] == "sum",
        )
        sums = rows.step(
            LARS, options, lambda above, below: _ratios(above, below, group), measures=self.measures
        )
        if sums is not None:
            self.measured.append((rows.params, sums))

    def _step(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Step parameters of one group, one device and one dtype."""
        if self.measures:
            self.before.update((p, p.clone()) for p in params)
        grads = widen(gradients(params))
        directions = list(torch._foreach_add(grads, widen(params), alpha=group["weight_decay"]))
        measured = norms(grads if group["norm"] == "sum" else directions)
        ratios = _ratios(norms(params), measured, group)
        scale_each_(directions, ratios)
        if group["momentum"]:
            buffers = [self._with_buffer(p)["momentum_buffer"] for p in params]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, directions)
            directions = buffers
        descend_(params, directions, group["lr"])
        for p, ratio in zip(params, ratios.float().unbind(), strict=True):
            self.state[p]["trust_ratio"] = ratio

    def _with_buffer(self, p: Tensor) -> dict[str, Any]:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return state


def _ratios(weight_norms: Tensor, measured: Tensor, group: dict[str, Any]) -> Tensor:
    """Return the trust ratios of layers from ‖w‖ and ‖g‖ or ‖g + λw‖, all of shape (layers,)."""
    decay = group["weight_decay"]
    adapted = (weight_norms != 0) & (measured != 0)
    if not group["always_adapt"]:
        adapted &= decay != 0
    below = measured + decay * weight_norms if group["norm"] == "sum" else measured
    return trust_ratios(group["trust_coefficient"] * weight_norms, below + group["eps"], adapted)


def _check(group: dict[str, Any]) -> None:
    """Require that every option of a group is in its range."""
    for name in ("lr", "weight_decay", "trust_coefficient", "eps"):
        check_number("Lars", group, name)
    check_number("Lars", group, "momentum", below=1)
    for name in ("norm", "always_adapt"):
        check_option("Lars", name, group[name])
    check_fused("Lars", group)
