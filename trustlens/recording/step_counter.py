"""Going on with a run: which step each of its optimizers goes on from, and what is taken away."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeGuard

from torch import Tensor
from torch.optim import Optimizer

from trustlens.errors import UsageError
from trustlens.recording.measuring.probe import Watch
from trustlens.recording.optimizers import is_on_accelerator
from trustlens.store.gaps import REPAIRED
from trustlens.store.layout import LayerInfo, RunInfo
from trustlens.store.reader import read_table
from trustlens.store.validation import LAST_STEP

STEPS_BEFORE: Final = "optimizer_steps_before"
"""Where ``run.json`` says how many steps each optimizer had done before the run's first."""


@dataclass(frozen=True, slots=True)
class Rewind:
    """On its way to the writer: the rows behind ``step`` go, and those of layers behind ``own``.

    ``own`` has the last step that stays of each optimizer's layers.
    """

    step: int
    own: Sequence[int]

    def layers(self, infos: Sequence[LayerInfo]) -> dict[str, int]:
        """Return the last step that stays of each layer of which it is not ``step``."""
        return {
            info.name: self.own[info.optimizer]
            for info in infos
            if info.optimizer < len(self.own) and self.own[info.optimizer] != self.step
        }


class Course:
    """Which step a run and each of its optimizers are at: settled once, at the first step.

    Until then a checkpoint may still be loaded. It is, in this order: what :meth:`go_to` was told;
    the step at which the optimizer had done as many as its own count says, those left out that
    gradient scaling skipped; the last recorded one, where the optimizer keeps no count.

    Parameters
    ----------
    directory : Path
        The run.
    watches : sequence of Watch
        Its optimizers.
    put : callable
        Hands a :class:`Rewind` over to the writer.
    note : callable
        Has ``run.json`` say something of the recorder.
    warn : callable
        Warns the user.
    """

    def __init__(
        self,
        directory: Path,
        watches: Sequence[Watch],
        *,
        put: Callable[[Rewind], None],
        note: Callable[..., None],
        warn: Callable[[str], None],
    ) -> None:
        self._step = 0
        self.last_time = 0  # of the run that is resumed, in microseconds since 1970
        self._directory = directory
        self._watches = watches
        self._put, self._note, self._warn = put, note, warn
        self._open = list(range(len(watches)))
        self._resumed = self._told = False
        self._last = [0] * len(watches)
        self._skipped: list[int] = []
        self._counts = [own_count(watch.optimizer) or 0 for watch in watches]
        self._before = self._counts  # steps that each optimizer had done before the run's first
        self._waiting: list[Callable[[], None]] = []

    @property
    def own(self) -> list[int]:
        """The step that each optimizer did last, as far as can be told by now."""
        told = [self._told_by(i) if self._begins else None for i in range(len(self._watches))]
        return [w.step if n is None else n for n, w in zip(told, self._watches, strict=True)]

    @property
    def step(self) -> int:
        """The step that was done last, as far as can be told by now."""
        if not self._begins:
            return self._step
        told = [self._told_by(i) for i in self._open]
        return max((step for step in told if step is not None), default=self._step)

    @step.setter
    def step(self, step: int) -> None:
        self._step = step

    @property
    def noted(self) -> dict[str, Any]:
        """What ``run.json`` is to say of it."""
        return {STEPS_BEFORE: self._before}

    def resume(self, old: RunInfo, new: RunInfo, stays: Sequence[str]) -> RunInfo:
        """Take note of what the run holds; return what its ``run.json`` will say.

        The fields named in ``stays`` are those of ``old``.
        """
        layers = _union(self._directory, old.layers, new.layers)
        steps = read_table(self._directory, "steps")
        self._skipped = sorted(steps.filter(steps["skipped"])["step"].to_pylist())
        self._step = max(steps["step"].to_pylist(), default=0)
        self.last_time = max(steps["time"].cast("int64").to_pylist(), default=0)
        self._last = [self._step] * len(self._watches)
        if len(self._watches) > 1 and old.recorder.get("every") == 1:
            # Its process may have died between a step's rows and the step's own.
            each = _last_of_each(self._directory, old, len(self._watches))
            self._last = [min(last, self._step) for last in each]
        before = _counts(old.recorder.get(STEPS_BEFORE))
        missing = max(0, len(self._watches) - len(before))
        self._before = [*before, *[0] * missing][: len(self._watches)]
        self._resumed = True
        for watch, step in zip(self._watches, self._last, strict=True):
            watch.step = step
        kept = {
            key: value for key, value in old.recorder.items() if key not in ("stopped", REPAIRED)
        }
        recorder = {**kept, **new.recorder, **self.noted}
        same = {key: getattr(old, key) for key in ("created", *stays)}
        return replace(new, **same, layers=layers, recorder=recorder)

    def go_to(self, own: Sequence[int]) -> None:
        """Have each optimizer go on from the step given, whatever else is known."""
        for watch, step in zip(self._watches, own, strict=True):
            watch.step = step
        self._told = True
        self._go_on(Rewind(max(own), tuple(own)))

    def known(self, watch: Watch) -> bool:
        """Tell, before a step, whether it is known which one; find it out if it can be.

        Where a count lies on an accelerator, reading it waits: once, as a run is resumed.
        """
        if not self._open:
            return True
        self._settle_before()
        return not self._is_open(watch)

    def known_after(self, watch: Watch) -> None:
        """Settle, after the first step of an optimizer that had no state, what was left open."""
        if self._open and self._is_open(watch):
            anew = has_state(watch.optimizer)
            if anew:
                self._keep([0 if i in self._open else n for i, n in enumerate(self._before)])
            self._settle(dict.fromkeys(self._open, 0 if anew else None))

    def when_known(self, watch: Watch | None, work: Callable[[], None]) -> None:
        """Do it once it is known which step the watch is at, or which one was done last."""
        if self._begins if watch is None else not self.known(watch):
            self._waiting.append(work)
        else:
            work()

    def end(self) -> None:
        """Do what still waits: no step comes any more."""
        waiting, self._waiting = self._waiting, []
        for work in waiting:
            work()

    def _is_open(self, watch: Watch) -> bool:
        return any(self._watches[i] is watch for i in self._open)

    @property
    def _begins(self) -> bool:
        return self._resumed and not self._told and len(self._open) == len(self._watches)

    def _told_by(self, i: int) -> int | None:
        """Return the step at which an optimizer had done as many as it counts, if it counts."""
        count = own_count(self._watches[i].optimizer)
        if count is None:
            return None
        step = max(count - self._before[i], 0)
        for skipped in self._skipped:
            step += skipped <= step
        return step

    def _settle_before(self) -> None:
        found: dict[int, int | None] = {}
        before = list(self._before)
        for i in self._open:
            optimizer = self._watches[i].optimizer
            known = self._told or not self._resumed
            step = self._watches[i].step if known else self._told_by(i)
            if step is None and not has_state(optimizer):
                continue  # it keeps no state or begins anew: its step will tell
            found[i] = step
            if step is not None:
                count = own_count(optimizer, wait=self._resumed)
                done = step - sum(skipped <= step for skipped in self._skipped)
                before[i] = (self._counts[i] if count is None else count) - done
        self._keep(before)
        self._settle(found)

    def _keep(self, before: list[int]) -> None:
        if before != self._before:
            self._before = before
            self._note(**self.noted)

    def _settle(self, found: Mapping[int, int | None]) -> None:
        known = [step for step in found.values() if step is not None]
        known += [watch.step for i, watch in enumerate(self._watches) if i not in self._open]
        furthest = [max(known)] if known else []
        for i, step in found.items():
            # One that keeps no count is no further than those that do: they share a checkpoint.
            self._watches[i].step = min([self._last[i], *furthest]) if step is None else step
        self._open = [i for i in self._open if i not in found]
        if found and self._resumed and not self._told:
            own = [None if i in self._open else each.step for i, each in enumerate(self._watches)]
            step = max(each for each in own if each is not None)
            self._go_on(Rewind(step, [step if each is None else each for each in own]))

    def _go_on(self, rewind: Rewind) -> None:
        if rewind.step > self._step > 0:
            self._warn(
                f"trustlens: '{self._directory}' goes on after step {rewind.step}, but has rows up "
                f"to step {self._step} only: those between are missing"
            )
        if rewind.step > self._step:
            # A rewind that failed leaves rows of steps that were then done anew, unrecorded.
            self._put(Rewind(self._step, [min(step, self._step) for step in rewind.own]))
        self._step = rewind.step
        self._put(rewind)
        self.end()


def own_count(optimizer: Optimizer, *, wait: bool = True) -> int | None:
    """Return the steps that an optimizer has done by its own count; None if it keeps none.

    It is the largest that it keeps of itself, of a layer or of a group. None also if reading it
    would wait and is not to.
    """
    places: list[Any] = [optimizer.state, *optimizer.state.values(), *optimizer.param_groups]
    given = [place.get("step") for place in places if isinstance(place, Mapping)]
    numbers = [
        one
        for one in given
        if isinstance(one, (int, float)) or (isinstance(one, Tensor) and one.numel() == 1)
    ]
    if not numbers or (not wait and any(is_on_accelerator(one) for one in numbers)):
        return None
    return max(int(one) for one in numbers)


def has_state(optimizer: Optimizer) -> bool:
    """Tell whether an optimizer keeps anything of its earlier steps."""
    kept: list[Any] = list(optimizer.state.values())
    return any(not isinstance(state, Mapping) or len(state) > 0 for state in kept)


def checked_state(given: Any, optimizers: int) -> list[int]:
    """Return each optimizer's step from what ``Recorder.state_dict`` returned, or UsageError."""
    step = given.get("step") if isinstance(given, Mapping) else None
    own: Any = given.get("own", []) if isinstance(given, Mapping) else []
    if not _is_step(step) or not isinstance(own, list) or not all(map(_is_step, own)):
        raise UsageError(
            f"load_state_dict of a recorder got {given!r}; give what its state_dict returned, "
            'or {"step": 1000}'
        )
    # Of other optimizers than now: all are taken to be at the same step.
    return own if len(own) == optimizers else [step] * optimizers


def _is_step(value: Any) -> TypeGuard[int]:
    # Half of what a reader takes: there may come more.
    return _is_count(value) and 0 <= value <= LAST_STEP // 2


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _counts(given: Any) -> list[int]:
    """Return the counts of a list that a ``run.json`` had; 0 for what is none."""
    counts: list[Any] = given if isinstance(given, list) else []
    return [count if _is_count(count) else 0 for count in counts]


def _last_of_each(directory: Path, info: RunInfo, optimizers: int) -> list[int]:
    """Return the last step with rows of each optimizer's layers."""
    rows = read_table(directory, "layers", ["step", "layer"])
    lasts = rows.group_by("layer").aggregate([("step", "max")])
    last = dict(zip(lasts["layer"].to_pylist(), lasts["step_max"].to_pylist(), strict=True))
    own = [(layer.optimizer, last.get(layer.name, 0)) for layer in info.layers]
    return [max((step for i, step in own if i == n), default=0) for n in range(optimizers)]


def _union(
    directory: Path, old: Sequence[LayerInfo], new: Sequence[LayerInfo]
) -> tuple[LayerInfo, ...]:
    shapes = {layer.name: layer.shape for layer in old}
    for layer in new:
        if shapes.get(layer.name, layer.shape) != layer.shape:
            raise UsageError(
                f"the run in '{directory}' has a layer '{layer.name}' of shape "
                f"{list(shapes[layer.name])}, and here it has {list(layer.shape)}; give the model "
                "that the run was recorded with, or record into another directory"
            )
    present = {layer.name for layer in new}
    return (*new, *(layer for layer in old if layer.name not in present))
