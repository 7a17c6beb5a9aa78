"""What was measured of some layers in one step: one type, made in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trustlens.kernels.device import brought
from trustlens.recording.optimizers import Direction, is_on_accelerator
from trustlens.recording.statistics import LayerStep
from trustlens.recording.transfer import Parcel, send
from trustlens.trust_ratio import RatioRule

HOST_COLUMNS: Final = ("debias1", "debias2", "learning_rate", "weight_decay")
"""Numbers of a layer that are known without reading from the device."""

DEVICE_COLUMNS: Final = ("trust_ratio", "learning_rate", "debias1", "debias2")
"""Numbers of a layer that may be on the device."""

KNOWN: Final = (
    "gradient",
    "direction",  # d + λw
    "undecayed",  # d itself
    "intended",  # d by its formula and w from a copy, so that a rounded-away update shows
    "momentum",
    "variance",
    "applied",  # the optimizer's own trust ratio
    "undone",  # w was computed from the state after the step
)
"""What a layer may lack in a step; the quantities that need it are then null."""

_NAN: Final = float("nan")

Values = TypeVar("Values", Tensor, Parcel)
"""Where the large arrays are: on the device, or on their way to the host."""


@dataclass(slots=True)  # not frozen, as `Direction`
class Measurement(Generic[Values]):
    """Some layers of one step that are on one device, n of them.

    A ``Measurement[Tensor]`` is on the device; :func:`send_to_host` makes a
    ``Measurement[Parcel]`` of it.

    Attributes
    ----------
    layers : int32 (n,)
        Indices into the run's layers.
    sizes : float64 (n,)
        Number of elements of each layer.
    known : bool (n, len(KNOWN))
        What each layer had.
    host : float64 (n, len(HOST_COLUMNS))
        NaN where there is no such number, or where it is on the device.
    sums : float (n, len(SUMS))
        The sums.
    device : float (n, len(DEVICE_COLUMNS)), optional
        The trust ratio that the optimizer applied, and those of the learning rate and the debias
        factors that are on the device; NaN elsewhere. None if all are NaN.
    rules : (n,), optional
        How to compute the trust ratio that the optimizer applied, or None; empty if no layer has
        such a rule.
    counts : int64 (n, len(ELEMENTS), buckets), optional
        Element histograms.
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
        """Bytes of its arrays."""
        held = self.layers.nbytes + self.sizes.nbytes + self.known.nbytes + self.host.nbytes
        for values in (self.sums, self.device, self.counts):
            held += 0 if values is None else values.nbytes
        return held


@dataclass(slots=True)  # not frozen, as `Direction`
class SharedNumbers:
    """What one layer, or several of one parameter group and step count, had in a step.

    Attributes
    ----------
    direction : Direction or None
        The numbers of the direction. A tensor among them may have one element, or one for each
        layer in their order; the tensors of the layer's size are not looked at.
    rate : float, Tensor or None
        The learning rate of the group, as its options have it.
    known : tuple of bool
        What the layers had, in the order of `KNOWN`.
    """

    direction: Direction | None
    rate: Any
    known: tuple[bool, ...]


NOTHING_KNOWN: Final = (False,) * len(KNOWN)
"""What is known of a layer without a gradient."""


def known_of(step: LayerStep) -> tuple[bool, ...]:
    """Return what a layer had in a step, in the order of `KNOWN`."""
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
    """Return the measurement of n layers of one device; it stays on the device.

    Parameters
    ----------
    layers, sizes, sums, counts
        As in :class:`Measurement`.
    shared : sequence of SharedNumbers
        The numbers that layers have in common.
    shared_of : int64 (n,)
        Index of each layer's numbers in ``shared``.
    ratios : sequence of (Tensor or None)
        The trust ratio that the optimizer applied to each layer, without dimensions and on the
        device; empty if it applied none that it kept.
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
        Too many measurements wait on the device.
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
    """Return ``Measurement.device``, of the dtype and on the device of ``like``."""
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
    """Return those of the shared values that are on the device as one value a layer."""
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
    return by_shared[brought(np.argsort(order), missing.device)]
