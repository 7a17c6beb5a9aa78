"""The part of an optimizer's step that LAMB and LARS share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from trustlens.optim.foreach import with_gradient
from trustlens.optim.fused import Fused, Rows, check_devices
from trustlens.optim.fused_cpu import Options


class Work(NamedTuple):
    """The layers of one parameter group that have a gradient.

    Attributes
    ----------
    group : dict
        The parameter group.
    fused : list of Rows
        The layers to step fused, by device.
    lists : list of list of Tensor
        The other parameters, by device and dtype.
    """

    group: dict[str, Any]
    fused: list[Rows]
    lists: list[list[Tensor]]


class LayerwiseOptimizer(Optimizer, ABC):
    """An optimizer that scales each layer's update by a trust ratio.

    A subclass gives its name for error messages and implements the abstract methods.
    """

    measures: bool = False
    measured: list[tuple[list[Tensor], Tensor]]
    _name: ClassVar[str]

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)
        self._reset()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with its own values of the options that it contains.

        Raises
        ------
        UsageError
            An option is out of its range.
        """
        self._check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)
        check_devices(self._name, self.param_groups[-1])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("fused", None)  # missing in older checkpoints
        self._reset()

    def _reset(self) -> None:
        self._fused = Fused(self._name)
        self._reset_measured()

    def _reset_measured(self) -> None:
        self.measured = []

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Do one step; `closure`, if given, computes the loss and the gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._reset_measured()
        self._step_groups(self._divide_groups())
        return loss

    def _divide_groups(self) -> list[Work]:
        """Return the layers to step fused and the others, of each group."""
        divided = [
            (group, *self._fused.divide(place, group, self.state, *self._fused_state(group)))
            for place, group in enumerate(self.param_groups)
        ]
        return [
            Work(group, fused, with_gradient(rest, self._name)) for group, fused, rest in divided
        ]

    def _step_rows(self, rows: Rows, kernel: int, options: Options, group: dict[str, Any]) -> None:
        """Step the layers of one group and device fused."""
        sums = rows.step(
            kernel,
            options,
            lambda above, below: self._ratios(above, below, group),
            measures=self.measures,
        )
        if sums is not None:
            self.measured.append((rows.params, sums))

    def _store_ratios(self, params: list[Tensor], ratios: Tensor) -> None:
        """Store the trust ratios that were applied to parameters, of shape (layers,)."""
        for p, ratio in zip(params, ratios.float().unbind(), strict=True):
            self.state[p]["trust_ratio"] = ratio

    @abstractmethod
    def _check_options(self, group: dict[str, Any]) -> None:
        """Raise a UsageError if an option of a group is out of its range."""

    @abstractmethod
    def _fused_state(
        self, group: dict[str, Any]
    ) -> tuple[Callable[[Tensor], dict[str, Any]], tuple[str, ...]]:
        """Return what a fused step of a group needs of the state.

        A function that returns a parameter's state, with new tensors if it has none yet, and the
        entries that the step reads and writes.
        """

    @abstractmethod
    def _ratios(self, above: Tensor, below: Tensor, group: dict[str, Any]) -> Tensor:
        """Return the trust ratios from the norms ‖w‖ and of the direction, each (layers,)."""

    @abstractmethod
    def _step_groups(self, work: list[Work]) -> None:
        """Step all groups."""
