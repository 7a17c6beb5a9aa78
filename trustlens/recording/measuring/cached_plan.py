"""Layers that lie where they lay: measured again without building each one's step anew.

Most layers of a model are alike: those of one parameter group at one step count have the same
numbers in their direction, and their tensors stay where they are, but for the gradients. What was
found out in one step holds in the next as long as every tensor is the same one at the same
address. Whenever anything is not, the layers are looked at one by one again.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from trustlens.kernels.device import brought
from trustlens.optim import Lamb, Lars
from trustlens.recording.measuring.layers import Layer
from trustlens.recording.optimizers import Direction, is_on_accelerator
from trustlens.recording.statistics import LayerStep
from trustlens.recording.statistics.cpu_backend import Compiled, gather, is_at_hand
from trustlens.recording.statistics.elements import BUCKETS
from trustlens.recording.statistics.triton_backend import Multi
from trustlens.recording.transfer import Parcel, send
from trustlens.recording.writing.tables import (
    DEVICE_COLUMNS,
    HOST_COLUMNS,
    Measured,
    at_hand,
    host_of,
    known_of,
)
from trustlens.schema import ELEMENTS

_RATE: Final = HOST_COLUMNS.index("learning_rate")

Look = Callable[[int, Mapping[str, Any]], LayerStep]

_gradient: Final = operator.attrgetter("grad")
_address: Final = Tensor.data_ptr


@dataclass(frozen=True, slots=True)
class Seen:
    """A layer whose step was looked at: its place in the watch, its index in the run."""

    place: int
    index: int
    layer: Layer
    step: LayerStep


@dataclass(frozen=True, slots=True)
class _Kind:
    """What layers have in common whose directions have the same form.

    ``entries`` are those of the optimizer's state that stand for x, v and m of the form as they
    lie; None where there is no such tensor. ``waits`` says that to read some number is to wait,
    ``count_waits`` that it is to read the step count.
    """

    group: int
    entries: tuple[str | None, str | None, str | None]
    keeps_ratio: bool
    known: tuple[bool, ...]
    waits: bool
    count_waits: bool

    def shared(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return what of a layer's state may tell a number of all: its count, its large tensors."""
        names = (*filter(None, self.entries), "step")
        return {name: state[name] for name in names if name in state}


@dataclass(frozen=True, slots=True)
class _Alike:
    """Layers of one kind: their rows in the plan, states, and where their step counts lie."""

    kind: _Kind
    group: Mapping[str, Any]
    rows: NDArray[np.int64]
    states: list[Mapping[str, Any]]
    counts: NDArray[np.int64] | None


class Yielded:
    """The sums that an optimizer of this package made while it stepped: ``measured``, of `Lamb`."""

    def __init__(self, optimizer: Lamb | Lars) -> None:
        self._optimizer = optimizer
        self._addresses: list[int] = []
        self._given: list[int] = []
        self._device = torch.device("cpu")
        self._order: Tensor | None = None

    def prepare(self, steps: Sequence[LayerStep]) -> Yielded:
        """Give the sums of these layers, of one device, from now on."""
        self._addresses = [step.after.data_ptr() for step in steps]
        self._device = steps[0].after.device
        return self

    def measure(self, *_: Any, **__: Any) -> Tensor:
        """Return the sums of each layer, float64 of shape (layers, len(SUMS)), on their device.

        Raises
        ------
        KeyError
            The optimizer made none of one of them.
        """
        measured = [each for each in self._optimizer.measured if each[1].device == self._device]
        parameters = [parameter for layers, _ in measured for parameter in layers]
        given = list(map(id, parameters))
        if given != self._given or self._order is None:
            rows = {parameter.data_ptr(): row for row, parameter in enumerate(parameters)}
            order = np.array([rows[address] for address in self._addresses], np.int64)
            self._order, self._given = brought(order, self._device), given
        return torch.cat([sums for _, sums in measured])[self._order]


class Plan:
    """Measures layers of one device again; ``places`` are those in the watch, row by row."""

    @classmethod
    def of(
        cls,
        optimizer: Optimizer,
        look: Look,
        seen: Sequence[Seen],
        sums: Compiled | Multi | Yielded,
    ) -> Plan | None:
        """Return a plan for those of these layers that can have one; None if none can.

        ``look`` returns the step of the layer at a place, by the state given or its own; ``sums``
        makes the sums.
        """
        yields = isinstance(sums, Yielded)
        kinds: dict[_Kind, list[Seen]] = {}
        for one in seen:
            state = optimizer.state.get(one.layer.parameter, {})
            kind = _kind_of(one.layer, one.step, state, yields=yields)
            if kind is None or not _is_readable(state.get("step"), kind):
                continue
            if kind in kinds or not kind.waits or _is_shared(kind, one, look, state, sums):
                kinds.setdefault(kind, []).append(one)
        ordered = [one for alike in kinds.values() for one in alike]
        prepared = sums.prepare([one.step for one in ordered]) if ordered else None
        return None if prepared is None else cls(optimizer, look, kinds, prepared, yields=yields)

    def __init__(
        self,
        optimizer: Optimizer,
        look: Look,
        kinds: Mapping[_Kind, Sequence[Seen]],
        prepared: Any,
        *,
        yields: bool,
    ) -> None:
        ordered = [one for alike in kinds.values() for one in alike]
        self.places = [one.place for one in ordered]
        self._optimizer, self._look = optimizer, look
        self._prepared, self._yields = prepared, yields
        self._layers = np.array([one.index for one in ordered], np.int32)
        self._parameters = [one.layer.parameter for one in ordered]
        self._of = [one.layer for one in ordered]
        self._sizes = np.array([p.numel() for p in self._parameters], np.float64)
        self._bytes = [p.element_size() for p in self._parameters]
        self._known = np.array([known_of(one.step) for one in ordered], bool)
        self._alike: list[_Alike] = []
        for kind, alike in kinds.items():
            rows = np.arange(len(alike)) + sum(len(before.rows) for before in self._alike)
            self._alike.append(_alike(kind, alike, rows, optimizer.state))
        self._state, self._states = optimizer.state, list(optimizer.state.values())
        self._held = [held for alike in self._alike for held in _held(alike)]
        self._tensors = [*self._parameters]
        for alike in self._alike:
            for name in filter(None, dict.fromkeys(alike.kind.entries)):
                self._tensors += [state[name] for state in alike.states]
        self._addresses = list(map(_address, self._tensors))

    def measure(self, *, histograms: bool = False) -> Measured | None:
        """Measure the step that was done; None if the layers must be looked at one by one."""
        try:
            grads = list(map(_gradient, self._parameters))
            places = self._places_of(grads)
            if places is None or not self._holds():
                return None
            forms, form_of = self._forms(places)
            counts = self._no_counts() if histograms else None
            sums = self._prepared.measure(places, forms, form_of, counts=counts)
        except (KeyError, RuntimeError, ValueError):  # an emptied state, a sparse gradient
            return None
        # A layer without gradient has the last row.
        host = np.array([*map(host_of, forms), host_of(None)])[form_of]
        for alike in self._alike:
            host[alike.rows, _RATE] = at_hand(alike.group.get("lr"))
        rules = [form.ratio_rule for form in forms]
        has_rules = any(rule is not None for rule in rules)
        there = form_of >= 0
        return Measured(
            layers=self._layers,
            sizes=self._sizes,
            known=self._known if there.all() else self._known & there[:, None],
            host=host,
            sums=send(sums),
            beside=self._beside(forms, form_of),
            rules=tuple([*rules, None][i] for i in form_of) if has_rules else (),
            counts=None if counts is None else send(counts),
        )

    def _no_counts(self) -> Tensor:
        shape, device = (len(self.places), len(ELEMENTS), BUCKETS), self._parameters[0].device
        return torch.zeros(shape, dtype=torch.int64, device=device)

    def _places_of(self, grads: list[Any]) -> NDArray[np.int64] | None:
        """Return where the gradients lie, 0 for none; None if one lies otherwise than before."""
        there, sizes = grads, self._bytes
        if any(map(operator.is_, grads, itertools.repeat(None))):
            there = [grad for grad in grads if grad is not None]
            sizes = [n for grad, n in zip(grads, sizes, strict=True) if grad is not None]
        if not all(map(Tensor.is_contiguous, there)):
            return None
        if list(map(Tensor.element_size, there)) != sizes:
            return None
        if there is grads:
            return np.array(list(map(_address, grads)), np.int64)
        return np.array([0 if grad is None else grad.data_ptr() for grad in grads], np.int64)

    def _holds(self) -> bool:
        """Tell whether every tensor is the one that it was, where it was."""
        state = self._optimizer.state
        return (
            state is self._state
            and len(state) == len(self._states)
            and all(map(operator.is_, state.values(), self._states))
            and all(
                all(map(operator.is_, map(entry, states), tensors))
                for entry, states, tensors in self._held
            )
            and list(map(_address, self._tensors)) == self._addresses
        )

    def _forms(self, places: NDArray[np.int64]) -> tuple[list[Direction], NDArray[np.int64]]:
        """Return the directions that occur and which one each layer has, -1 for none.

        Raises
        ------
        ValueError
            A layer's direction has another form than before.
        """
        forms: list[Direction] = []
        form_of = np.full(len(places), -1, np.int64)
        whole = bool(places.all())
        for alike in self._alike:
            there = None if whole else places[alike.rows] != 0
            rows = alike.rows if there is None else alike.rows[there]
            if len(rows) and alike.kind.count_waits and alike.counts is not None:
                counts = alike.counts if there is None else alike.counts[there]
                members = [(rows, self._prepared.gather(counts))]
            else:
                members = [(rows, None) for rows in _by_count(alike, there)]
            for of_form, counts in members:
                form_of[of_form] = len(forms)
                forms.append(self._form(alike, int(of_form[0]), counts))
        return forms, form_of

    def _form(self, alike: _Alike, row: int, counts: Tensor | None) -> Direction:
        """Return the direction of one layer, which is that of all like it, or raise ValueError."""
        layer, state = self._of[row], alike.states[row - alike.rows[0]]
        seen = alike.kind.shared(state) if alike.kind.waits else state
        if counts is not None:
            seen = {**seen, "step": counts}
        step = self._look(self.places[row], seen)
        if step.direction is None or (
            _kind_of(layer, step, state, yields=self._yields) != alike.kind
        ):
            raise ValueError(layer.info.name)
        return step.direction

    def _beside(self, forms: Sequence[Direction], form_of: NDArray[np.int64]) -> Parcel | None:
        """Return what lies on the device beside the sums, as ``Measured.beside`` has it."""
        known: list[tuple[NDArray[np.int64], str, Tensor]] = []
        for alike in self._alike:
            if alike.kind.keeps_ratio:
                ratios = [state["trust_ratio"].reshape(()) for state in alike.states]
                known.append((alike.rows, "trust_ratio", torch.stack(ratios)))
            rate = alike.group.get("lr")
            if isinstance(rate, Tensor) and is_on_accelerator(rate):
                known.append((alike.rows, "learning_rate", rate))
        for i, form in enumerate(forms):
            for name, factor in (("debias1", form.debias1), ("debias2", form.debias2)):
                if isinstance(factor, Tensor) and is_on_accelerator(factor):
                    known.append((np.flatnonzero(form_of == i), name, factor))
        if not known:
            return None
        shape, device = (len(self.places), len(DEVICE_COLUMNS)), self._parameters[0].device
        beside = torch.full(shape, torch.nan, dtype=torch.float64, device=device)
        for rows, name, values in known:
            column = beside[:, DEVICE_COLUMNS.index(name)]
            column.index_copy_(0, brought(rows, device), values.double().expand(len(rows)))
        return send(beside)


def _is_shared(
    kind: _Kind, one: Seen, look: Look, state: Mapping[str, Any], sums: Compiled | Multi | Yielded
) -> bool:
    """Tell whether numbers that cannot be looked at follow from what layers of a kind share."""
    if not isinstance(sums, Multi):
        return False
    try:
        step = look(one.place, kind.shared(state))
    except KeyError:
        return False
    return _kind_of(one.layer, step, state) == kind


def _kind_of(
    layer: Layer, step: LayerStep, state: Mapping[str, Any], *, yields: bool = False
) -> _Kind | None:
    """Return what kind a layer is of; None if its next step may need another look.

    Of an optimizer that ``yields`` its sums the numbers are not read.
    """
    form = step.direction
    if form is None or step.grad is not layer.parameter.grad:
        return None
    if not layer.parameter.numel():
        return None  # it lies nowhere, and so does its gradient
    entries: list[str | None] = []
    for tensor in (form.base, form.variance, form.momentum):
        names = [name for name, value in state.items() if value is tensor]
        if tensor is not None and not names:
            return None  # made for this step
        entries.append(names[0] if tensor is not None else None)
    ratio, applied = state.get("trust_ratio"), form.trust_ratio
    if applied is not None and not (
        isinstance(ratio, Tensor) and _address(ratio) == _address(applied)
    ):
        return None
    return _Kind(
        group=layer.info.group,
        entries=(entries[0], entries[1], entries[2]),
        keeps_ratio=applied is not None,
        known=known_of(step),
        waits=not (yields or is_at_hand(form)),
        count_waits=is_on_accelerator(state.get("step")),
    )


def _is_readable(count: Any, kind: _Kind) -> bool:
    """Tell whether a step count, if there is one, can be read with those of other layers."""
    if count is None:
        return True
    there = isinstance(count, Tensor) and count.dtype == torch.float32
    return there and (kind.waits or not kind.count_waits)


def _alike(
    kind: _Kind,
    seen: Sequence[Seen],
    rows: NDArray[np.int64],
    state: Mapping[Tensor, Mapping[str, Any]],
) -> _Alike:
    states = [state.get(one.layer.parameter, {}) for one in seen]
    counts = [each["step"] for each in states if "step" in each]
    at = np.array(list(map(_address, counts)), np.int64) if counts else None
    return _Alike(kind, seen[0].layer.group, rows, states, at)


def _by_count(alike: _Alike, there: NDArray[np.bool_] | None) -> list[NDArray[np.int64]]:
    """Return the rows of layers that are there, those of one step count together."""
    rows = alike.rows if there is None else alike.rows[there]
    if alike.counts is None or not len(rows):
        return [rows] if len(rows) else []
    counts = gather(alike.counts if there is None else alike.counts[there])
    if (counts == counts[0]).all():
        return [rows]
    return [rows[counts == count] for count in np.unique(counts)]


def _held(alike: _Alike) -> Iterator[tuple[Callable[[Any], Any], list[Any], list[Any]]]:
    """Give, for each entry of the states that is read: what reads it, the states, the tensors."""
    names = [*filter(None, alike.kind.entries), *([] if alike.counts is None else ["step"])]
    for name in dict.fromkeys(names):
        yield operator.itemgetter(name), alike.states, [state[name] for state in alike.states]
