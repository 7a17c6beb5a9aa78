"""Base class of `Lamb` and `Lars`."""

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
    """The parameters of one group to update in one step: those that have a gradient.

    Attributes
    ----------
    group : dict
        The parameter group.
    fused : list of Rows
        Parameters to step with the fused kernels: one `Rows` for each device.
    lists : list of list of Tensor
        Parameters to step with torch's foreach operations: one list for each device and dtype.
    """

    group: dict[str, Any]
    fused: list[Rows]
    lists: list[list[Tensor]]


class LayerwiseOptimizer(Optimizer, ABC):
    """An optimizer that scales each layer's update by a trust ratio: `Lamb` or `Lars`.

    A subclass sets ``_name``, which is its name in error messages, and implements the abstract
    methods.
    """

    measures: bool = False
    measured: list[tuple[list[Tensor], Tensor]]
    _name: ClassVar[str]

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)
        self._reset()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group. Options that the group does not contain get their defaults.

        Raises
        ------
        UsageError
            If an option is out of range, or if ``fused`` is True and a device of the parameters
            does not support fused steps.
        """
        self._check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)
        check_devices(self._name, self.param_groups[-1])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("fused", None)  # older checkpoints do not have this option
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
        """Perform one optimization step.

        Parameters
        ----------
        closure : callable, optional
            Computes the gradients and returns the loss. It is called before the step.

        Returns
        -------
        float, optional
            The loss, if a closure is given.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._reset_measured()
        self._step_groups(self._divide_groups())
        return loss

    def _divide_groups(self) -> list[Work]:
        """Return the work of this step for each parameter group."""
        divided = [
            (group, *self._fused.divide(index, group, self.state, *self._fused_state(group)))
            for index, group in enumerate(self.param_groups)
        ]
        return [
            Work(group, fused, with_gradient(rest, self._name)) for group, fused, rest in divided
        ]

    def _step_rows(self, rows: Rows, kernel: int, options: Options, group: dict[str, Any]) -> None:
        """Step ``rows``, parameters of one group on one device, with the fused kernels.

        ``kernel`` is ``LAMB`` or ``LARS`` of fused_cpu.py. If ``measures`` is True, append the
        recorded sums to ``measured``.
        """
        sums = rows.step(
            kernel,
            options,
            lambda weights, directions: self._ratios(weights, directions, group),
            measures=self.measures,
        )
        if sums is not None:
            self.measured.append((rows.params, sums))

    def _store_ratios(self, params: list[Tensor], ratios: Tensor) -> None:
        """Store the applied trust ratios, shape (layers,), in the parameters' state."""
        for p, ratio in zip(params, ratios.float().unbind(), strict=True):
            self.state[p]["trust_ratio"] = ratio

    @abstractmethod
    def _check_options(self, group: dict[str, Any]) -> None:
        """Raise UsageError if an option of a group is out of range."""

    @abstractmethod
    def _fused_state(
        self, group: dict[str, Any]
    ) -> tuple[Callable[[Tensor], dict[str, Any]], tuple[str, ...]]:
        """Return how a fused step gets the state of a group's parameters.

        Returns
        -------
        callable
            Takes a parameter and returns its state, which it creates at the parameter's first step.
        tuple of str
            Names of the state entries that the step reads or writes.
        """

    @abstractmethod
    def _ratios(
        self, weight_norms: Tensor, direction_norms: Tensor, group: dict[str, Any]
    ) -> Tensor:
        """Return the trust ratios of layers, given the norms of their weights and directions.

        All three tensors have the shape (layers,).
        """

    @abstractmethod
    def _step_groups(self, work: list[Work]) -> None:
        """Step the parameters of all groups."""
