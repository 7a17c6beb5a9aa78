"""One optimizer under watch: its layers, the copy of their weights, its measurement."""

# torch offers its operations on lists of tensors under private names only:
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from trustlens.recording.directions import Direction, family_of, steps_done
from trustlens.recording.layers import Layer
from trustlens.recording.rows import HOST_COLUMNS, KNOWN, Measured
from trustlens.recording.statistics import LayerStep
from trustlens.recording.statistics.elements import count_elements
from trustlens.recording.statistics.portable import Portable
from trustlens.recording.transfer import Parcel, host_scalar, send

Hook = Callable[[Optimizer, Any, Any], None]

_NAN: Final = float("nan")

STATISTICS: Final = Portable.name
"""Which implementation of the sums is at work."""


class Watch:
    """Sees each step of one optimizer: :meth:`before` it and :meth:`after` it.

    Between the two it holds a copy of the weights, since low precision rounds an update in a way
    that only the weights themselves show.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.step = 0
        self._family = family_of(optimizer)
        self._statistics = Portable()  # its own: models may be trained in several threads
        self._handles: list[Any] = []
        self._groups: list[tuple[dict[str, Any], list[Tensor]]] = []
        self._layers: list[tuple[int, Layer]] = []
        self._copies: list[Tensor] = []
        self._copied = False

    @property
    def understood(self) -> bool:
        """Whether the optimizer's direction is known in closed form."""
        return self._family is not None

    def attach(self, before: Hook, after: Hook) -> None:
        """Have the two called around each step."""
        self._handles = [
            self.optimizer.register_step_pre_hook(before),
            self.optimizer.register_step_post_hook(after),
        ]

    def detach(self) -> None:
        """Leave the optimizer as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._copies = []

    def follow(self, layers: Sequence[tuple[int, Layer]]) -> None:
        """Watch these layers from now on, each with its index in the run."""
        self._groups = [(group, list(group["params"])) for group in self.optimizer.param_groups]
        self._layers = list(layers)
        self._copies = [torch.empty_like(layer.parameter) for _, layer in layers]

    @property
    def has_changed(self) -> bool:
        """Whether the optimizer has other parameters or groups than those that are followed.

        It has other groups, of the same parameters, after ``load_state_dict``.
        """
        groups = self.optimizer.param_groups
        return len(groups) != len(self._groups) or not all(
            group is known
            and len(group["params"]) == len(parameters)
            and all(map(operator.is_, group["params"], parameters))
            for group, (known, parameters) in zip(groups, self._groups, strict=True)
        )

    def before(self, *, measure: bool) -> None:
        """Copy the weights before a step, if it will be measured."""
        self._copied = measure
        if measure and self._layers:
            parameters = [layer.parameter for _, layer in self._layers]
            torch._foreach_copy_(self._copies, parameters)

    def skipped(self) -> float | Parcel:
        """Tell, maybe still on its way, whether the step that was done changed nothing: 0 or 1.

        Gradient scaling leaves a fused optimizer to skip a step whose gradients overflowed.
        """
        found = getattr(self.optimizer, "found_inf", None)
        return 0.0 if found is None else host_scalar(found)

    def after(self, *, histograms: bool) -> list[Measured]:
        """Measure the step that was done, if its weights were copied: one part a device."""
        if not self._copied:
            return []
        self._copied = False
        devices: dict[torch.device, list[int]] = {}
        for place, (_, layer) in enumerate(self._layers):
            devices.setdefault(layer.parameter.device, []).append(place)
        return [self._measure(places, histograms) for places in devices.values()]

    def _measure(self, places: list[int], histograms: bool) -> Measured:
        steps = [self._layer_step(place) for place in places]
        layers = [self._layers[place] for place in places]
        directions = [step.direction for step in steps]
        rates = [layer.group.get("lr", _NAN) for _, layer in layers]
        sums = self._statistics.measure(steps)
        columns = [
            sums,
            _column([d.trust_ratio if d else None for d in directions], sums),
            *(
                _column([value if _on_device(value) else None for value in values], sums)
                for values in (
                    rates,
                    [d.debias1 if d else None for d in directions],
                    [d.debias2 if d else None for d in directions],
                )
            ),
        ]
        return Measured(
            layers=np.array([index for index, _ in layers], np.int32),
            sizes=np.array([layer.info.size for _, layer in layers], np.float64),
            known=np.array([_known(step) for step in steps], bool).reshape(-1, len(KNOWN)),
            host=np.array(
                [_host(direction, rate) for direction, rate in zip(directions, rates, strict=True)],
                np.float64,
            ).reshape(-1, len(HOST_COLUMNS)),
            sums=send(torch.cat(columns, dim=1)),
            counts=send(_count(steps)) if histograms else None,
        )

    def _layer_step(self, place: int) -> LayerStep:
        layer = self._layers[place][1]
        parameter, group = layer.parameter, layer.group
        state = self.optimizer.state.get(parameter, {})
        grad = parameter.grad
        direction = None
        if grad is not None:
            if group.get("maximize"):
                grad = -grad
            if group.get("max_grad_norm") and "grad_divisor" in state:
                grad = grad / state["grad_divisor"]  # Lamb's own clip leaves p.grad as it was
            if self._family is not None:
                direction = self._family(group, state, steps_done(state))
        return LayerStep(self._copies[place], parameter.detach(), grad, direction)


def _known(step: LayerStep) -> tuple[bool, ...]:
    direction = step.direction
    return (
        step.grad is not None,
        direction is not None,
        direction is not None and direction.momentum is not None,
        direction is not None and direction.variance is not None,
        direction is not None and direction.trust_ratio is not None,
    )


def _host(direction: Direction | None, rate: float | Tensor) -> tuple[float, ...]:
    if direction is None:
        return (_NAN, _NAN, _at_hand(rate), _NAN)
    factors = (direction.debias1, direction.debias2)
    return (*(_at_hand(factor) for factor in factors), _at_hand(rate), direction.decay)


def _at_hand(value: float | Tensor | None) -> float:
    return _NAN if value is None or _on_device(value) else float(value)


def _on_device(value: float | Tensor | None) -> bool:
    return isinstance(value, Tensor) and value.device.type != "cpu"


def _column(values: Sequence[Any], like: Tensor) -> Tensor:
    """Return values without dimensions as a column beside ``like``, NaN where there is none."""
    missing = torch.full((), _NAN, dtype=like.dtype, device=like.device)
    if all(value is None for value in values):
        return missing.expand(len(values), 1)
    column = [missing if value is None else value.to(missing).reshape(()) for value in values]
    return torch.stack(column).unsqueeze(1)


def _count(steps: Sequence[LayerStep]) -> Tensor:
    """Return histograms of weight, gradient and update: int64 (layers, 3, buckets)."""
    empty = count_elements(steps[0].before.new_empty(0))
    return torch.stack(
        [
            torch.stack(
                [
                    count_elements(step.before),
                    empty if step.grad is None else count_elements(step.grad),
                    count_elements(step.after.float() - step.before.float()),
                ]
            )
            for step in steps
        ]
    )
