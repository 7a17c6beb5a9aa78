"""Fast path: measure layers without reading each one, as long as their layout does not change.

To read a layer means to find its tensors and the coefficients of its direction. Layers of one
parameter group that have the same step count have the same coefficients, and all tensors except the
gradients usually keep their addresses from step to step. A plan is made from
the layers that were read in one step, and measures later steps. In each of these steps, the plan
first checks that the layout has not changed: all tensors except the gradients must be the same
objects at the same addresses. The plan then reads only one of the layers that share coefficients.
If a check fails, every layer is read again.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from trustlens.element_bins import ELEMENT_BUCKETS
from trustlens.recording.measuring.fused_sums import FusedSums
from trustlens.recording.measuring.layer_reader import LayerReader
from trustlens.recording.measuring.layers import Layer
from trustlens.recording.measuring.measurement import (
    NOTHING_KNOWN,
    Measurement,
    SharedNumbers,
    build_measurement,
    known_of,
)
from trustlens.recording.optimizers import Direction, is_on_accelerator
from trustlens.recording.statistics import LayerStep
from trustlens.recording.statistics.backend import PreparingBackend
from trustlens.recording.statistics.cpu_backend import gather, is_on_host
from trustlens.recording.statistics.triton_backend import TritonBackend
from trustlens.schema import ELEMENTS

_gradient: Final = operator.attrgetter("grad")
_dtype: Final = operator.attrgetter("dtype")
_address: Final = Tensor.data_ptr


@dataclass(frozen=True, slots=True)
class ReadLayer:
    """A layer, and what a :class:`LayerReader` read of its last step.

    Attributes
    ----------
    place : int
        Index of the layer in the probe's list of layers.
    index : int
        Index of the layer in the run's list of layer names.
    layer : Layer
        The layer.
    step : LayerStep
        What the reader returned.
    """

    place: int
    index: int
    layer: Layer
    step: LayerStep


@dataclass(frozen=True, slots=True)
class _Kind:
    """Properties that layers must share for their coefficients to be computed together.

    Attributes
    ----------
    group : int
        Index of the parameter group.
    known : tuple of bool
        For each entry of ``KNOWN``, whether it is known of the layer; see :func:`known_of`.
    has_base : bool
        Whether the direction contains a tensor x, see :class:`Direction`.
    has_ratio : bool
        Whether the optimizer's state holds the trust ratio.
    numbers_on_device : bool
        Whether any coefficient is a tensor on an accelerator. Always False if a fused step computes
        the sums.
    count_on_device : bool
        Whether the layer's step count is on an accelerator.
    """

    group: int
    known: tuple[bool, ...]
    has_base: bool
    has_ratio: bool
    numbers_on_device: bool
    count_on_device: bool


@dataclass(frozen=True, slots=True)
class _LayersOfKind:
    """The layers of one kind in a plan.

    Attributes
    ----------
    kind : _Kind
        The kind.
    group : mapping
        The parameter group of all these layers.
    rows : int64 (layers,)
        Indices of these layers in the plan; consecutive.
    counts : int64 (layers,), optional
        Addresses of the layers' step counts; None if the optimizer counts no steps.
    """

    kind: _Kind
    group: Mapping[str, Any]
    rows: NDArray[np.int64]
    counts: NDArray[np.int64] | None

    def by_count(self, rows: NDArray[np.int64], prepared: Any) -> _RowsWithCounts:
        """Split layers by step count, so that the layers of each part share all coefficients.

        If the counts are on an accelerator, they are not compared, since that would synchronize.
        Then all layers form one part, and each coefficient that depends on the count is a tensor
        on the accelerator, with one value per layer.

        Parameters
        ----------
        rows : int64
            Indices of the layers to split; some of :attr:`rows`.
        prepared
            The layers that the backend prepared. Its method ``gather`` is used to read counts that
            are on an accelerator.

        Returns
        -------
        list of (rows, counts)
            For each part, the indices of its layers, and a tensor of their step counts. The tensor
            is None if the counts are on the host, or if the optimizer counts no steps.
        """
        if self.counts is None or not len(rows):
            return [(rows, None)] if len(rows) else []
        addresses = self.counts[rows - self.rows[0]]
        if self.kind.count_on_device:
            return [(rows, prepared.gather(addresses))]
        counts = gather(addresses)
        if (counts == counts[0]).all():
            return [(rows, None)]
        return [(rows[counts == count], None) for count in np.unique(counts)]


_RowsWithCounts = list[tuple[NDArray[np.int64], Tensor | None]]


class CachedPlan:
    """Measures some layers of one device in each step, as long as their layout does not change.

    An :class:`OptimizerProbe` creates plans with :meth:`of` and uses them in later steps.

    Attributes
    ----------
    places : list of int
        Indices of the plan's layers in the probe's list of layers.
    """

    @classmethod
    def of(
        cls,
        optimizer: Optimizer,
        reader: LayerReader,
        layers: Sequence[ReadLayer],
        backend: PreparingBackend | None,
    ) -> CachedPlan | None:
        """Return a plan for those of the given layers that a plan can measure.

        Return None if a plan can measure none of them, or if the backend cannot prepare them.

        Parameters
        ----------
        optimizer : Optimizer
            An optimizer whose family is ``cacheable`` or ``provides_sums``.
        reader : LayerReader
            Reads one layer of each kind in each step.
        layers : sequence of ReadLayer
            The layers, all on one device, as they were read in the last step.
        backend : PreparingBackend or None
            Computes the sums. None if the optimizer's fused step computes them.
        """
        kinds: dict[_Kind, list[ReadLayer]] = {}
        for one in layers:
            state = optimizer.state.get(one.layer.parameter, {})
            kind = _kind_of(one.layer, one.step, state, fused=backend is None)
            if kind is not None and _is_supported(kind, state, backend):
                kinds.setdefault(kind, []).append(one)
        if not kinds:
            return None
        ordered = [one for alike in kinds.values() for one in alike]
        if backend is None:
            fused = FusedSums(optimizer, [one.layer.parameter for one in ordered])
            return cls(optimizer, reader, kinds, fused, None)
        prepared = backend.prepare([one.step for one in ordered])
        return None if prepared is None else cls(optimizer, reader, kinds, None, prepared)

    def __init__(
        self,
        optimizer: Optimizer,
        reader: LayerReader,
        kinds: Mapping[_Kind, Sequence[ReadLayer]],
        fused: FusedSums | None,
        prepared: Any,
    ) -> None:
        ordered = [one for alike in kinds.values() for one in alike]
        self.places = [one.place for one in ordered]
        self._reader = reader
        self._fused, self._prepared = fused, prepared
        self._optimizer = optimizer
        self._layers = [one.layer for one in ordered]
        self._indices = np.array([one.index for one in ordered], np.int32)
        self._parameters = [one.layer.parameter for one in ordered]
        self._sizes = np.array([p.numel() for p in self._parameters], np.float64)
        self._dtypes = [p.dtype for p in self._parameters]
        # The layout, which `_is_unchanged` checks: the same objects at the same addresses.
        self._state, self._states = optimizer.state, list(optimizer.state.values())
        self._own_states = [optimizer.state.get(p, {}) for p in self._parameters]
        self._entries = list(_entries(self._own_states))
        self._used = [_tensors_of(one.step.direction) for one in ordered]
        ratios = [d.trust_ratio if (d := one.step.direction) else None for one in ordered]
        self._ratios = ratios if any(kind.has_ratio for kind in kinds) else ()
        self._tensors = [*self._parameters]
        for used, ratio, state in zip(self._used, ratios, self._own_states, strict=True):
            read = (*used, ratio, state.get("step"))
            self._tensors += {id(each): each for each in read if each is not None}.values()
        self._addresses = list(map(_address, self._tensors))
        self._alike = [*self._grouped(kinds)]

    def _grouped(self, kinds: Mapping[_Kind, Sequence[ReadLayer]]) -> Iterator[_LayersOfKind]:
        first = 0
        for kind, alike in kinds.items():
            rows = np.arange(first, first + len(alike))
            first += len(alike)
            counts = [
                s["step"].data_ptr() for s in self._own_states[rows[0] : first] if "step" in s
            ]
            at = np.array(counts, np.int64) if counts else None
            yield _LayersOfKind(kind, alike[0].layer.group, rows, at)

    def measure(self, *, histograms: bool = False) -> Measurement[Tensor] | None:
        """Measure the last step, or return None if the layout has changed since the plan was made.

        If the result is None, the layers must be read one by one.
        """
        grads = self._grad_addresses()
        if grads is None or not self._is_unchanged():
            return None
        shared = self._shared_numbers(grads)
        if shared is None:
            return None
        numbers, shared_of = shared
        counts = None
        if self._fused is not None:
            sums = self._fused.read()
            if sums is None:
                return None
        else:
            directions = [each.direction for each in numbers if each.direction is not None]
            form_of = shared_of
            if len(directions) < len(numbers):  # the last ones are of layers without a gradient
                form_of = np.where(shared_of < len(directions), shared_of, -1)
            if histograms:
                shape = len(self.places), len(ELEMENTS), ELEMENT_BUCKETS
                counts = torch.zeros(shape, dtype=torch.int64, device=self._parameters[0].device)
            sums = self._prepared.measure(grads, directions, form_of, counts=counts)
        return build_measurement(
            self._indices,
            self._sizes,
            numbers,
            shared_of,
            ratios=self._ratios,
            sums=sums,
            counts=counts,
        )

    def _grad_addresses(self) -> NDArray[np.int64] | None:
        """Return the addresses of the gradients, in the layers' order; 0 for a missing gradient.

        Return None if a gradient is not contiguous or has another dtype than its parameter.
        """
        grads = there = list(map(_gradient, self._parameters))
        dtypes = self._dtypes
        if any(map(operator.is_, grads, itertools.repeat(None))):
            there = [grad for grad in grads if grad is not None]
            dtypes = [of for grad, of in zip(grads, dtypes, strict=True) if grad is not None]
        # A sparse gradient is not contiguous.
        if not (
            all(map(Tensor.is_contiguous, there))
            and all(map(operator.is_, map(_dtype, there), dtypes))
        ):
            return None
        if there is grads:
            return np.array(list(map(_address, grads)), np.int64)
        return np.array([0 if grad is None else grad.data_ptr() for grad in grads], np.int64)

    def _is_unchanged(self) -> bool:
        """Return whether all tensors are the same objects as in the plan, at the same addresses."""
        state, entries = self._optimizer.state, list(_entries(self._own_states))
        return (
            state is self._state
            and len(state) == len(self._states)
            and all(map(operator.is_, state.values(), self._states))
            and len(entries) == len(self._entries)
            and all(map(operator.is_, entries, self._entries))
            and list(map(_address, self._tensors)) == self._addresses
        )

    def _shared_numbers(
        self, grads: NDArray[np.int64]
    ) -> tuple[list[SharedNumbers], NDArray[np.int64]] | None:
        """Return the values that layers share in this step, and each layer's index in this list.

        The values of layers without a gradient come last. Return None if a layer's direction uses
        other terms or tensors than when the plan was made.
        """
        numbers: list[SharedNumbers] = []
        shared_of = np.empty(len(grads), np.int64)
        without: list[tuple[_LayersOfKind, NDArray[np.int64]]] = []
        whole = bool(grads.all())
        for alike in self._alike:
            rows = alike.rows
            if not whole:
                there = grads[rows] != 0
                without.append((alike, rows[~there]))
                rows = rows[there]
            for members, counts in alike.by_count(rows, self._prepared):
                direction = self._direction(alike.kind, int(members[0]), counts)
                if direction is None:
                    return None
                shared_of[members] = len(numbers)
                numbers.append(SharedNumbers(direction, alike.group.get("lr"), alike.kind.known))
        for alike, rows in without:
            shared_of[rows] = len(numbers)
            numbers.append(SharedNumbers(None, alike.group.get("lr"), NOTHING_KNOWN))
        return numbers, shared_of

    def _direction(self, kind: _Kind, row: int, counts: Tensor | None) -> Direction | None:
        """Read the direction of one layer, whose coefficients other layers share.

        ``counts`` are the step counts of all these layers if on an accelerator, else None.
        Return None if the layer is of another kind than when the plan was made, or if its
        direction uses other tensors.
        """
        layer, fused = self._layers[row], self._fused is not None
        step = self._reader.read(self.places[row], fused=fused, counts=counts)
        same = _kind_of(layer, step, self._own_states[row], fused=fused) == kind and all(
            map(operator.is_, _tensors_of(step.direction), self._used[row])
        )
        return step.direction if same else None


def _kind_of(
    layer: Layer, step: LayerStep, state: Mapping[str, Any], *, fused: bool
) -> _Kind | None:
    """Return a layer's kind, or None if the layer must be read in every step.

    ``state`` is the optimizer's state of the layer. ``fused`` says whether the optimizer's fused
    step computes the recorded sums. If so, coefficients on a device do not change the kind.
    """
    direction, parameter = step.direction, layer.parameter
    # An empty tensor has no address. A gradient that is not `p.grad` was made for this step only.
    if direction is None or step.grad is not parameter.grad or not parameter.numel():
        return None
    entries = list(state.values())
    for tensor in _tensors_of(direction):
        if tensor is not None and not any(tensor is entry for entry in entries):
            return None  # the tensor was made for this step only
    ratio = direction.trust_ratio
    if ratio is not None:
        entry = state.get("trust_ratio")
        if not isinstance(entry, Tensor) or entry.data_ptr() != ratio.data_ptr():
            return None
    return _Kind(
        group=layer.info.group,
        known=known_of(step),
        has_base=direction.base is not None,
        has_ratio=ratio is not None,
        numbers_on_device=not (fused or is_on_host(direction)),
        count_on_device=is_on_accelerator(state.get("step")),
    )


def _is_supported(kind: _Kind, state: Any, backend: PreparingBackend | None) -> bool:
    """Return whether a plan can compute the coefficients of the layers of this kind.

    ``state`` is the optimizer's state of one of the layers.
    """
    if kind.numbers_on_device and not isinstance(backend, TritonBackend):
        return False
    if not isinstance(state, dict):
        return False
    if "step" not in state:
        return True
    count: Any = state["step"]
    readable = isinstance(count, Tensor) and count.dtype == torch.float32
    return readable and (kind.numbers_on_device or not kind.count_on_device)


def _tensors_of(direction: Direction | None) -> tuple[Tensor | None, ...]:
    """Return the tensors of a direction that have the layer's shape: base, variance, momentum.

    A tensor that the direction lacks is None; without a direction, all three are None.
    """
    if direction is None:
        return (None, None, None)
    return (direction.base, direction.variance, direction.momentum)


def _entries(states: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """Yield the values of all entries of the layers' optimizer states."""
    return itertools.chain.from_iterable(map(dict.values, states))  # pyright: ignore[reportArgumentType]
