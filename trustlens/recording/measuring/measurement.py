"""What is measured of some layers in one step: class `Measurement` and functions to build it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trustlens.kernels.device import upload
from trustlens.recording.optimizers import Direction, is_on_accelerator
from trustlens.recording.statistics import LayerStep
from trustlens.recording.transfer import Parcel, send
from trustlens.trust_ratio import RatioRule

HOST_COLUMNS: Final = ("debias1", "debias2", "learning_rate", "weight_decay")
"""Names of the columns of ``Measurement.host``: values known without reading from the device."""

DEVICE_COLUMNS: Final = ("trust_ratio", "learning_rate", "debias1", "debias2")
"""Names of the columns of ``Measurement.device``: values that may exist on the device only."""

KNOWN: Final = (
    "gradient",
    "direction",  # d + λw
    "undecayed",  # d itself
    "intended",  # d by its formula, and w from a copy: they show an update lost to rounding
    "momentum",
    "variance",
    "applied",  # the trust ratio, read from the optimizer's state
    "undone",  # w before the step, computed from w and the state after it
)
"""Names of what may be known of a layer in a step.

A recorded quantity is null if something that it needs is not known.

g is the gradient, d the direction, w the weights and λ the decoupled weight decay.
"""

_NAN: Final = float("nan")

Values = TypeVar("Values", Tensor, Parcel)
"""Type of the large arrays: tensors on the device, or their pending copies to the host."""


@dataclass(slots=True)  # not frozen, which would make it slower to create
class Measurement(Generic[Values]):
    """What was measured of n layers, all on one device, in one step.

    A ``Measurement[Tensor]`` is on the device; :func:`send_to_host` converts it to a
    ``Measurement[Parcel]``.

    Attributes
    ----------
    layers : int32 (n,)
        Index of each layer in the run's list of layer names.
    sizes : float64 (n,)
        Number of elements of each layer.
    known : bool (n, len(KNOWN))
        For each layer and each entry of `KNOWN`, whether it is known.
    host : float64 (n, len(HOST_COLUMNS))
        The values of `HOST_COLUMNS`. NaN if a layer has no such value, or has it on the device.
    sums : float (n, len(SUMS))
        The sums over each layer's elements that ``trustlens.kernels.sums`` declares.
    device : float (n, len(DEVICE_COLUMNS)), optional
        The values of `DEVICE_COLUMNS`: the trust ratio that the optimizer applied, and the
        learning rate and debias factors if these are on the device. NaN if a layer has no such
        value, or has it on the host. None if all values would be NaN.
    rules : sequence of (RatioRule or None), (n,)
        For each layer, the rule that computes the trust ratio that the optimizer applied, or None
        if the layer has no rule. Empty if no layer has a rule.
    counts : int64 (n, len(ELEMENTS), buckets), optional
        Element histograms; None if they were not measured in this step.
    """

    layers: NDArray[np.int32]
    sizes: NDArray[np.float64]
    known: NDArray[np.bool_]
    host: NDArray[np.float64]
    sums: Values
    device: Values | None = None
    rules: Sequence[RatioRule | None] = ()
    counts: Values | None = None

    @property
    def nbytes(self) -> int:
        """Total size of the arrays in bytes."""
        held = self.layers.nbytes + self.sizes.nbytes + self.known.nbytes + self.host.nbytes
        for values in (self.sums, self.device, self.counts):
            held += 0 if values is None else values.nbytes
        return held


@dataclass(slots=True)  # not frozen, which would make it slower to create
class SharedNumbers:
    """Values of one step, shared by several layers of one parameter group or of a single layer.

    Attributes
    ----------
    direction : Direction or None
        Contains the coefficients of the layers' directions. A coefficient that is a tensor has one
        element, or one per layer, in the order of the layers. The direction's tensors of the
        layer's shape are not used. None if the direction is unknown.
    rate : float, Tensor or None
        The option ``lr`` of the group; None if the group has no such option.
    known : tuple of bool
        For each entry of `KNOWN`, whether it is known of these layers.
    """

    direction: Direction | None
    rate: Any
    known: tuple[bool, ...]


NOTHING_KNOWN: Final = (False,) * len(KNOWN)
"""``SharedNumbers.known`` of a layer without a gradient."""


def known_of(step: LayerStep) -> tuple[bool, ...]:
    """Return, for each entry of `KNOWN`, whether it is known of a layer in a step."""
    d = step.direction
    there = d is not None
    return (
        step.grad is not None,
        there,
        there and d.decay is not None,
        there and not d.measured and step.before is not None,
        there and d.momentum is not None,
        there and d.variance is not None,
        there and d.trust_ratio is not None,
        there and step.before is None,
    )


def build_measurement(
    layers: NDArray[np.int32],
    sizes: NDArray[np.float64],
    shared: Sequence[SharedNumbers],
    shared_of: NDArray[np.int64],
    *,
    ratios: Sequence[Tensor | None],
    sums: Tensor,
    counts: Tensor | None = None,
) -> Measurement[Tensor]:
    """Return the measurement of n layers, all on one device. Its tensors stay on that device.

    Parameters
    ----------
    layers, sizes, sums, counts
        As in :class:`Measurement`.
    shared : sequence of SharedNumbers
        The values that layers share.
    shared_of : int64 (n,)
        Index of each layer's values in ``shared``.
    ratios : sequence of (Tensor or None)
        The trust ratio that the optimizer applied to each layer, as a tensor without dimensions on
        the device; empty if the optimizer does not store its ratio.
    """
    rules = [None if each.direction is None else each.direction.ratio_rule for each in shared]
    has_rules = any(rule is not None for rule in rules)
    return Measurement(
        layers=layers,
        sizes=sizes,
        known=np.array([each.known for each in shared], bool)[shared_of],
        host=np.array([_host_columns(each) for each in shared], np.float64)[shared_of],
        sums=sums,
        device=_device_columns(shared, shared_of, ratios, sums),
        rules=tuple(rules[i] for i in shared_of) if has_rules else (),
        counts=counts,
    )


def send_to_host(measurement: Measurement[Tensor]) -> Measurement[Parcel]:
    """Start copying a measurement to the host, without waiting.

    Raises
    ------
    NoRoomError
        If a ring buffer on the device is full of measurements not yet copied to the host.
    """
    device, counts = measurement.device, measurement.counts
    return Measurement(
        layers=measurement.layers,
        sizes=measurement.sizes,
        known=measurement.known,
        host=measurement.host,
        sums=send(measurement.sums),
        device=None if device is None else send(device),
        rules=measurement.rules,
        counts=None if counts is None else send(counts),
    )


def _host_columns(numbers: SharedNumbers) -> tuple[float, ...]:
    direction, rate = numbers.direction, _on_host(numbers.rate)
    if direction is None:
        return (_NAN, _NAN, rate, _NAN)
    decay = _NAN if direction.decay is None else direction.decay
    return (_on_host(direction.debias1), _on_host(direction.debias2), rate, decay)


def _on_host(value: float | Tensor | None) -> float:
    """Return a number as a float; NaN for None and for a tensor on an accelerator."""
    return _NAN if value is None or is_on_accelerator(value) else float(value)


def _device_columns(
    shared: Sequence[SharedNumbers],
    shared_of: NDArray[np.int64],
    ratios: Sequence[Tensor | None],
    like: Tensor,
) -> Tensor | None:
    """Return the value of ``Measurement.device``, with the dtype and on the device of ``like``.

    Return None if all its elements would be NaN.
    """
    columns: list[Sequence[Any]] = [
        [each.rate for each in shared],
        [each.direction and each.direction.debias1 for each in shared],
        [each.direction and each.direction.debias2 for each in shared],
    ]
    has_ratio = any(ratio is not None for ratio in ratios)
    on_device = [any(map(is_on_accelerator, values)) for values in columns]
    if not has_ratio and not any(on_device):
        return None
    missing = like.new_full((), _NAN)
    none = missing.expand(len(shared_of))
    of_layers = [missing if ratio is None else ratio for ratio in ratios]
    made = [torch.stack(of_layers).to(like) if has_ratio else none]
    for values, is_there in zip(columns, on_device, strict=True):
        made.append(_spread(values, shared_of, missing) if is_there else none)
    return torch.stack(made, dim=1)


def _spread(values: Sequence[Any], shared_of: NDArray[np.int64], missing: Tensor) -> Tensor:
    """Return a tensor with one value per layer, of shape (n,).

    ``shared_of`` is the index of each layer's value in ``values``. The result has ``missing`` in
    place of values that are not on the device.
    """
    there = [value.detach() if is_on_accelerator(value) else missing for value in values]
    layers_of = np.bincount(shared_of, minlength=len(values)).tolist()
    by_shared = torch.cat(
        [
            value.to(missing).reshape(-1).expand(count)
            for value, count in zip(there, layers_of, strict=True)
        ]
    )
    order = np.argsort(shared_of, kind="stable")
    if (order[1:] > order[:-1]).all():
        return by_shared
    return by_shared[upload(np.argsort(order), missing.device)]
