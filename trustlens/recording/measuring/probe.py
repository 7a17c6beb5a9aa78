"""Measure each step of one optimizer."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from trustlens.recording.hooks.optimizer import Call, StepHooks
from trustlens.recording.measuring.cached_plan import CachedPlan, ReadLayer
from trustlens.recording.measuring.fused_sums import FusedSums, fused_parameters
from trustlens.recording.measuring.layer_reader import LayerReader
from trustlens.recording.measuring.layers import Layer
from trustlens.recording.measuring.measurement import (
    Measurement,
    SharedNumbers,
    build_measurement,
    known_of,
)
from trustlens.recording.measuring.snapshots import WeightSnapshots, untraced
from trustlens.recording.optimizers import family_of
from trustlens.recording.statistics.backend import PreparingBackend, backend_for
from trustlens.recording.statistics.torch_backend import TorchBackend
from trustlens.recording.transfer import Parcel, host_scalar

_PART: Final = 1 << 20
"""Layers are measured together up to this number of elements. A larger layer is measured alone."""


class _Cached(NamedTuple):
    """The plans for the next steps.

    Attributes
    ----------
    copy_plan : object
        The value of ``WeightSnapshots.copy_plan`` when the plans were made. If that value has
        changed since, the plans are invalid.
    plans : list of CachedPlan
        The plans.
    rest : list of int
        Indices, in the probe's list of layers, of those that no plan measures.
    """

    copy_plan: object
    plans: list[CachedPlan]
    rest: list[int]


class OptimizerProbe:
    """Measures the steps of one optimizer.

    The recorder has one probe per optimizer. It calls :meth:`before` just before each step and
    :meth:`after` just after it.

    Attributes
    ----------
    optimizer : Optimizer
        The optimizer.
    family : Family
        The kind of optimizer, which determines how its steps are measured.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer: Any = optimizer
        self.family = family_of(optimizer)
        self._snapshots = WeightSnapshots(optimizer, self.family)
        self._reader = LayerReader(optimizer, self.family, self._snapshots)
        # Not shared between probes: threads of one process may train different models.
        self._backends: dict[torch.device, PreparingBackend | TorchBackend] = {}
        self._hooks: StepHooks | None = None
        self._groups: list[tuple[dict[str, Any], list[Tensor]]] = []
        self._layers: list[tuple[int, Layer]] = []
        self._measures = False
        self._cached: dict[bool, _Cached] = {}  # key: whether histograms are measured

    def attach(self, hooks: StepHooks) -> None:
        """Store the optimizer's hooks, so that :meth:`detach` can remove them."""
        self._hooks = hooks

    def detach(self) -> None:
        """Remove the hooks and free the memory used for measuring."""
        if self._hooks is not None:
            self._hooks.remove()
        self.release()

    def release(self) -> None:
        """Free the memory used for measuring."""
        self._measures = False
        self._cached = {}
        self._snapshots.follow([])
        self._reader.follow([])
        self._backends = {}

    def follow(self, layers: Sequence[tuple[int, Layer]]) -> None:
        """Measure these layers from now on.

        Each is given with its index in the run's list of layer names.
        """
        self._groups = [(group, list(group["params"])) for group in self.optimizer.param_groups]
        self._layers = list(layers)
        self._snapshots.follow([layer for _, layer in layers])
        self._reader.follow([layer for _, layer in layers])
        self._cached = {}

    @property
    def has_changed(self) -> bool:
        """Whether the optimizer has other parameters or groups than when :meth:`follow` was called.

        The groups are compared too, since the optimizer's ``load_state_dict`` replaces them by new
        ones with the same parameters.
        """
        groups = self.optimizer.param_groups
        return len(groups) != len(self._groups) or not all(
            group is known
            and len(group["params"]) == len(parameters)
            and all(map(operator.is_, group["params"], parameters))
            for group, (known, parameters) in zip(groups, self._groups, strict=True)
        )

    @property
    def statistics(self) -> list[str]:
        """Names of the backends that compute the sums."""
        return sorted({self._backend(at.parameter.device).name for _, at in self._layers})

    def before(self, call: Call, *, measure: bool, histograms: bool) -> Call | None:
        """Copy what the step will overwrite, if ``measure`` is True.

        ``call`` contains the arguments of the step. Return the arguments to call the step with
        instead, or None to leave the arguments unchanged.
        """
        self._measures = measure
        if not measure:
            return None
        args, kwargs = call
        if self.family.provides_sums:
            self.optimizer.measures = not histograms
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        self._snapshots.take(closure, everything=histograms)
        if closure is None or not self.family.uses_first_grad:
            return None
        wrapped = self._copy_grads_after_first_call(closure)
        if len(args) > 1:
            return (args[0], wrapped, *args[2:]), kwargs
        return args, {**kwargs, "closure": wrapped}

    def skipped(self) -> float | Parcel:
        """Return 1 if the optimizer skipped the step because of infinite gradients, else 0.

        With gradient scaling, a fused optimizer checks for infinite gradients itself, and the
        scaler stores the result in ``optimizer.found_inf``. If the result is on an accelerator,
        return its pending copy to the host.
        """
        found = getattr(self.optimizer, "found_inf", None)
        return 0.0 if found is None else host_scalar(found)

    def after(self, *, histograms: bool) -> list[Measurement[Tensor]]:
        """Measure the last step, if :meth:`before` was called with ``measure=True``.

        The layers are measured in parts, each on one device. Return one measurement for each part,
        on the part's device. If :meth:`before` was called with ``measure=False``, return an empty
        list.
        """
        if not self._measures:
            return []
        self._measures = False
        if self.family.provides_sums:
            self.optimizer.measures = False
        with untraced():
            measured = self._measure_by_plan(histograms=histograms)
            if measured is None:
                measured = self._measure_and_plan(histograms=histograms)
            self._snapshots.done()
        return measured

    def _measure_by_plan(self, *, histograms: bool) -> list[Measurement[Tensor]] | None:
        """Measure the last step with the cached plans.

        Return None if there are no plans, or if the layout has changed since they were made.
        """
        cached = self._cached.get(histograms)
        if cached is None or not cached.plans:
            return None
        if cached.copy_plan is not self._snapshots.copy_plan:
            return None
        measured: list[Measurement[Tensor]] = []
        for plan in cached.plans:
            of_plan = plan.measure(histograms=histograms)
            if of_plan is None:
                return None
            measured.append(of_plan)
        return [
            *measured,
            *(
                self._measure(self._read(part, fused=fused), fused=fused, histograms=histograms)
                for part, fused in self._parts(cached.rest)
            ),
        ]

    def _measure_and_plan(self, *, histograms: bool) -> list[Measurement[Tensor]]:
        """Read and measure every layer, and make plans for the next steps."""
        self._reader.find_grad_factor()
        measured: list[Measurement[Tensor]] = []
        to_plan: list[ReadLayer] = []
        for part, fused in self._parts(range(len(self._layers))):
            measured.append(self._measure_part(part, to_plan, fused=fused, histograms=histograms))
        self._cached[histograms] = self._plan(to_plan)
        return measured

    def _measure_part(
        self, part: Sequence[int], to_plan: list[ReadLayer], *, fused: bool, histograms: bool
    ) -> Measurement[Tensor]:
        # `layers` may hold tensors as large as the layers. Since it is a local variable, they are
        # freed after each part.
        layers = self._read(part, fused=fused)
        if self._snapshots.copy_plan is not None:
            to_plan.extend(layers)
        return self._measure(layers, fused=fused, histograms=histograms)

    def _plan(self, layers: Sequence[ReadLayer]) -> _Cached:
        fused = self._fused_places()
        together: dict[tuple[torch.device, bool], list[ReadLayer]] = {}
        for one in layers:
            key = one.step.after.device, one.place in fused
            together.setdefault(key, []).append(one)
        plans_of_parts = [self._plan_of(members, *key) for key, members in together.items()]
        plans = [plan for plan in plans_of_parts if plan is not None]
        planned = {place for plan in plans for place in plan.places}
        rest = [i for i in range(len(self._layers)) if i not in planned]
        return _Cached(self._snapshots.copy_plan, plans, rest)

    def _plan_of(
        self, layers: Sequence[ReadLayer], device: torch.device, fused: bool
    ) -> CachedPlan | None:
        if fused:
            return CachedPlan.of(self.optimizer, self._reader, layers, None)
        backend = self._backend(device)
        if not self.family.cacheable or isinstance(backend, TorchBackend):
            return None
        return CachedPlan.of(self.optimizer, self._reader, layers, backend)

    def _parts(self, places: Iterable[int]) -> list[tuple[list[int], bool]]:
        """Split layers into parts to measure one after the other, to limit temporary memory.

        ``places`` are indices in the probe's list of layers. The layers of a part are on one
        device and have at most `_PART` elements together. For each part, return the indices
        of its layers, and whether the optimizer computed their sums itself.
        """
        fused = self._fused_places()
        parts: list[tuple[list[int], bool]] = []
        last: dict[tuple[torch.device, bool], tuple[list[int], int]] = {}
        for place in places:
            parameter = self._layers[place][1].parameter
            key = parameter.device, place in fused
            part, room = last.get(key, ([], 0))
            if not part or parameter.numel() > room:
                part, room = [], _PART
                parts.append((part, key[1]))
            part.append(place)
            last[key] = part, room - parameter.numel()
        return parts

    def _fused_places(self) -> set[int]:
        """Return the indices of the layers whose sums the optimizer computed itself."""
        if not self.family.provides_sums:
            return set()
        fused = fused_parameters(self.optimizer)
        return {i for i, (_, layer) in enumerate(self._layers) if id(layer.parameter) in fused}

    def _read(self, places: Sequence[int], *, fused: bool) -> list[ReadLayer]:
        return [
            ReadLayer(place, *self._layers[place], self._reader.read(place, fused=fused))
            for place in places
        ]

    def _measure(
        self, layers: Sequence[ReadLayer], *, fused: bool, histograms: bool
    ) -> Measurement[Tensor]:
        steps = [one.step for one in layers]
        counts = None
        if fused:
            sums = FusedSums(self.optimizer, [one.layer.parameter for one in layers]).read()
            assert sums is not None  # noqa: S101 — `_parts` puts only layers with sums here
        elif histograms:
            sums, counts = self._backend(steps[0].after.device).measure_and_count(steps)
        else:
            sums = self._backend(steps[0].after.device).measure(steps)
        ratios = [step.direction and step.direction.trust_ratio for step in steps]
        return build_measurement(
            np.array([one.index for one in layers], np.int32),
            np.array([step.after.numel() for step in steps], np.float64),
            [
                SharedNumbers(one.step.direction, one.layer.group.get("lr"), known_of(one.step))
                for one in layers
            ],
            np.arange(len(layers)),
            ratios=[None if ratio is None else ratio.to(sums) for ratio in ratios],
            sums=sums,
            counts=counts,
        )

    def _backend(self, device: torch.device) -> PreparingBackend | TorchBackend:
        if device not in self._backends:
            self._backends[device] = backend_for(device)
        return self._backends[device]

    def _copy_grads_after_first_call(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Wrap a closure so that the gradients are copied after its first call in the step."""
        calls = 0

        def wrapped() -> Any:
            nonlocal calls
            loss = closure()
            calls += 1
            if calls == 1 and self._hooks is not None:
                self._hooks.guard(self._snapshots.take_grads)
            return loss

        return wrapped
