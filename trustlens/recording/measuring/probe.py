"""One optimizer under watch: its layers, what is kept of them, their measurement."""

# torch offers its operations on lists of tensors under private names only:
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from trustlens.kernels.tensors import upcast_half
from trustlens.recording.hooks.optimizer import Call, Guard, StepHooks
from trustlens.recording.measuring.cached_plan import Plan, Seen, Yielded
from trustlens.recording.measuring.layers import Layer
from trustlens.recording.measuring.snapshots import Kept, untraced
from trustlens.recording.optimizers import Stepped, family_of, is_on_accelerator
from trustlens.recording.statistics import LayerStep
from trustlens.recording.statistics.cpu_backend import Compiled
from trustlens.recording.statistics.torch_backend import Portable
from trustlens.recording.statistics.triton_backend import Multi
from trustlens.recording.transfer import Parcel, host_scalar, send
from trustlens.recording.writing.tables import Measured, host_of, known_of

_NAN: Final = float("nan")

_PART: Final = 1 << 20
"""Elements that are measured together, unless a layer alone has more."""


class _Planned(NamedTuple):
    """Plans that hold while the same is kept, and the places that they leave out."""

    settled: object
    plans: list[Plan]
    rest: list[int]


class Watch:
    """Sees each step of one optimizer: :meth:`before` it and :meth:`after` it."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer: Any = optimizer
        self.step = 0
        self.family = family_of(optimizer)
        self._kept = Kept(optimizer, self.family)
        # Its own: models may be trained in several threads.
        self._implementations: dict[torch.device, Portable | Compiled | Multi] = {}
        self._hooks: StepHooks | None = None
        self._groups: list[tuple[dict[str, Any], list[Tensor]]] = []
        self._layers: list[tuple[int, Layer]] = []
        self._measures = False
        self._grad_factor: float | Tensor = 1.0
        self._planned: dict[bool, _Planned] = {}  # by whether elements are counted

    def attach(
        self,
        guard: Guard,
        *,
        before: Callable[[Call], Call | None],
        after: Callable[[], None],
        skipped: Callable[[], None],
        captured: Callable[[], None],
    ) -> None:
        """Have them called at each step, through the guard: see :class:`StepHooks`."""
        self._hooks = StepHooks(
            self.optimizer,
            guard,
            before=before,
            after=after,
            skipped=skipped,
            captured=captured,
        )

    def detach(self) -> None:
        """Leave the optimizer as it was."""
        if self._hooks is not None:
            self._hooks.remove()
        self.release()

    def release(self) -> None:
        """Give back the memory that measuring needs."""
        self._measures = False
        self._planned = {}
        self._kept.follow([])
        self._implementations = {}

    def follow(self, layers: Sequence[tuple[int, Layer]]) -> None:
        """Watch these layers from now on, each with its index in the run."""
        self._groups = [(group, list(group["params"])) for group in self.optimizer.param_groups]
        self._layers = list(layers)
        self._kept.follow([layer for _, layer in layers])
        self._planned = {}

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

    def before(self, call: Call, *, measure: bool, histograms: bool) -> Call | None:
        """Keep what a step will overwrite, if it will be measured.

        Returns others than the step's own arguments to call it with, or None.
        """
        self._measures = measure
        if not measure:
            return None
        args, kwargs = call
        if self.family.provides_sums:
            self.optimizer.measures = not histograms
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        self._kept.take(closure, everything=histograms)
        if closure is None or not self.family.uses_first_grad:
            return None
        first = self._taking_first_grads(closure)
        if len(args) > 1:
            return (args[0], first, *args[2:]), kwargs
        return args, {**kwargs, "closure": first}

    def _taking_first_grads(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        calls = 0

        def calling() -> Any:
            nonlocal calls
            loss = closure()
            calls += 1
            if calls == 1 and self._hooks is not None:
                self._hooks.guard(self._kept.take_grads)
            return loss

        return calling

    def skipped(self) -> float | Parcel:
        """Tell, maybe still on its way, whether the step that was done changed nothing: 0 or 1.

        Gradient scaling leaves a fused optimizer to skip a step whose gradients overflowed.
        """
        found = getattr(self.optimizer, "found_inf", None)
        return 0.0 if found is None else host_scalar(found)

    def after(self, *, histograms: bool) -> list[Measured]:
        """Measure the step that was done, if :meth:`before` was to: one part a device, or more."""
        if not self._measures:
            return []
        self._measures = False
        if self.family.provides_sums:
            self.optimizer.measures = False
        with untraced():
            measured = self._again(histograms=histograms)
            if measured is None:
                measured = self._anew(histograms=histograms)
            self._kept.done()
        return measured

    def _again(self, *, histograms: bool) -> list[Measured] | None:
        """Measure as in the last such step; None if the layers must be looked at one by one."""
        planned = self._planned.get(histograms)
        if planned is None or not planned.plans or planned.settled is not self._kept.settled:
            return None
        measured: list[Measured] = []
        for plan in planned.plans:
            of_plan = plan.measure(histograms=histograms)
            if of_plan is None:
                return None
            measured.append(of_plan)
        rest = [
            self._measure(
                self._look_at(part, yielded=yielded), yielded=yielded, histograms=histograms
            )
            for part, yielded in self._parts(planned.rest)
        ]
        return [*measured, *rest]

    def _anew(self, *, histograms: bool) -> list[Measured]:
        """Look at each layer, measure it, and plan the next step by what was seen."""
        self._grad_factor = self._find_grad_factor()
        plannable: list[Seen] = []

        def measure(part: Sequence[int], yielded: bool) -> Measured:
            seen = self._look_at(part, yielded=yielded)  # gone at its end
            if self._kept.settled is not None:
                plannable.extend(seen)
            return self._measure(seen, yielded=yielded, histograms=histograms)

        measured = [measure(*part) for part in self._parts(range(len(self._layers)))]
        self._planned[histograms] = self._planned_of(plannable)
        return measured

    def _yielded(self) -> set[int]:
        """Return the places of the layers whose sums the optimizer made itself."""
        if not self.family.provides_sums:
            return set()
        there = {id(p) for parameters, _ in self.optimizer.measured for p in parameters}
        return {i for i, (_, layer) in enumerate(self._layers) if id(layer.parameter) in there}

    def _planned_of(self, seen: Sequence[Seen]) -> _Planned:
        yielded = self._yielded()
        alike: dict[tuple[torch.device, bool], list[Seen]] = {}
        for one in seen:
            alike.setdefault((one.step.after.device, one.place in yielded), []).append(one)
        plans = [self._plan_of(those, *which) for which, those in alike.items()]
        made = [plan for plan in plans if plan is not None]
        planned = {place for plan in made for place in plan.places}
        rest = [i for i in range(len(self._layers)) if i not in planned]
        return _Planned(self._kept.settled, made, rest)

    def _plan_of(self, seen: Sequence[Seen], device: torch.device, yielded: bool) -> Plan | None:
        look = partial(self._layer_step, yielded=yielded)
        if yielded:
            return Plan.of(self.optimizer, look, seen, Yielded(self.optimizer))
        sums = self._sums(device)
        if not self.family.cacheable or isinstance(sums, Portable):
            return None
        return Plan.of(self.optimizer, look, seen, sums)

    def _parts(self, places: Iterable[int]) -> list[tuple[list[int], bool]]:
        """Split them by device, and so that what some directions need is not there of all.

        Beside each part: whether the optimizer made its sums itself.
        """
        yielded = self._yielded()
        parts: list[tuple[list[int], bool]] = []
        last: dict[tuple[torch.device, bool], tuple[list[int], int]] = {}
        for place in places:
            parameter = self._layers[place][1].parameter
            which = parameter.device, place in yielded
            part, room = last.get(which, ([], 0))
            if not part or parameter.numel() > room:
                part, room = [], _PART
                parts.append((part, which[1]))
            part.append(place)
            last[which] = part, room - parameter.numel()
        return parts

    def _find_grad_factor(self) -> float | Tensor:
        if self.family.grad_factor is None:
            return 1.0
        grads = [self._given_grad(place) for place in range(len(self._layers))]
        present = [grad for grad in grads if grad is not None]
        return self.family.grad_factor(self.optimizer, present) if present else 1.0

    def _given_grad(self, place: int) -> Tensor | None:
        kept = self._kept.grad(place)
        return self._layers[place][1].parameter.grad if kept is None else kept

    def _look_at(self, places: Sequence[int], *, yielded: bool = False) -> list[Seen]:
        return [
            Seen(place, *self._layers[place], self._layer_step(place, yielded=yielded))
            for place in places
        ]

    def _measure(
        self, seen: Sequence[Seen], *, yielded: bool = False, histograms: bool = False
    ) -> Measured:
        steps = [one.step for one in seen]
        directions = [step.direction for step in steps]
        rates = [one.layer.group.get("lr") for one in seen]
        implementation = self._sums(steps[0].after.device)
        counts = None
        if yielded:
            sums = Yielded(self.optimizer).prepare(steps).measure()
        elif histograms:
            sums, counts = implementation.measure_and_count(steps)
        else:
            sums = implementation.measure(steps)
        beside = [
            _column([d.trust_ratio if d else None for d in directions], sums),
            *(
                _column([value if is_on_accelerator(value) else None for value in values], sums)
                for values in (
                    rates,
                    [d.debias1 if d else None for d in directions],
                    [d.debias2 if d else None for d in directions],
                )
            ),
        ]
        return Measured(
            layers=np.array([one.index for one in seen], np.int32),
            sizes=np.array([step.after.numel() for step in steps], np.float64),
            known=np.array([known_of(step) for step in steps], bool),
            host=np.array([*map(host_of, directions, rates)], np.float64),
            sums=send(sums),
            beside=send(torch.cat(beside, dim=1)),
            rules=tuple(d.ratio_rule if d else None for d in directions),
            counts=None if counts is None else send(counts),
        )

    @property
    def statistics(self) -> list[str]:
        """Which implementations of the sums are at work."""
        return sorted({self._sums(at.parameter.device).name for _, at in self._layers})

    def _sums(self, device: torch.device) -> Portable | Compiled | Multi:
        if device not in self._implementations:
            found = None
            if device.type == "cpu":
                found = Compiled.if_possible()
            elif device.type == "cuda":
                found = Multi.if_possible(device)
            self._implementations[device] = found or Portable()
        return self._implementations[device]

    def _layer_step(
        self, place: int, state: Mapping[str, Any] | None = None, *, yielded: bool = False
    ) -> LayerStep:
        """Return a layer's step, by this state in place of its own if given.

        One whose sums were ``yielded`` as if its weights had been copied: they were at hand.
        """
        layer, kept = self._layers[place][1], self._kept
        parameter, group = layer.parameter, layer.group
        before = kept.weights(place)
        after = _plain(parameter.detach())
        before = after if yielded else None if before is None else _plain(before)
        given = self._given_grad(place)
        copied = given is not None and given is not parameter.grad
        if given is None:
            return LayerStep(before, after, None, None)
        of_layer = self.optimizer.state.get(parameter, {}) if state is None else state
        if parameter.is_complex() or given.layout is not torch.strided:
            of_layer = {key: _plain(value) for key, value in of_layer.items()}
        grad = self._used(given, copied, group, of_layer)
        direction = self.family.direction(
            Stepped(group, of_layer, grad, after, before, given, kept.noted(place), self.optimizer)
        )
        return LayerStep(before, after, grad, direction)

    def _used(
        self, given: Tensor, copied: bool, group: Mapping[str, Any], state: Mapping[str, Any]
    ) -> Tensor:
        """Return the gradient that the step used: dense, real, of a loss that goes down."""
        grad = _plain(given)
        scale = getattr(self.optimizer, "grad_scale", None)
        if copied and scale is not None:
            grad = grad / scale  # gradient scaling leaves it to some optimizers to undo it
        if group.get("maximize"):
            grad = -grad
        if group.get("max_grad_norm") and "grad_divisor" in state:
            # Lamb's own clip leaves p.grad as it was, and divides halves in float32.
            grad = (upcast_half([grad])[0] / state["grad_divisor"]).to(grad.dtype)
        factor = self._grad_factor
        if isinstance(factor, Tensor) or factor != 1:
            grad = grad * (factor.to(grad.device) if isinstance(factor, Tensor) else factor)
        return grad


def _plain(value: Any) -> Any:
    """Return a sparse tensor as a dense one, a complex one as real, as torch.optim sees it."""
    if not isinstance(value, Tensor):
        return value
    if value.layout is not torch.strided:
        value = value.to_dense()
    return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value


def _column(values: Sequence[Any], like: Tensor) -> Tensor:
    """Return values without dimensions as a column beside ``like``, NaN where there is none."""
    missing = torch.full((), _NAN, dtype=like.dtype, device=like.device)
    if all(value is None for value in values):
        return missing.expand(len(values), 1)
    column = [missing if value is None else value.to(missing).reshape(()) for value in values]
    return torch.stack(column).unsqueeze(1)
