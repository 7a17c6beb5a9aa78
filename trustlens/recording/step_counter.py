"""Count the steps of a run and of each of its optimizers, also where a run is resumed.

The counter has no side effects: it is given what was observed, and returns numbers and events that
the recorder applies. It reads no file and no optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from types import MappingProxyType
from typing import Any, NamedTuple, TypeGuard

from trustlens.errors import UsageError
from trustlens.store.run_info import LayerInfo
from trustlens.store.validation import LAST_STEP


class State(Enum):
    """What a :class:`StepCounter` knows. Its methods say which one leads to which."""

    UNKNOWN = auto()
    """A resumed run: nothing says yet from which step any optimizer continues."""
    PARTLY_KNOWN = auto()
    """A resumed run: some optimizers have continued, the others have not stepped yet."""
    AWAITING_FIRST_STEP = auto()
    """All numbers are known. The optimizers' own counts are compared with them once, at the next
    step: until then a checkpoint may be loaded into the optimizers."""
    COUNTING = auto()
    """All numbers are known, and each step adds one."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What the state of an optimizer says about the steps that it has done.

    Attributes
    ----------
    count : int, optional
        How many it has done, by its own count; None if it keeps none.
    has_state : bool
        Whether it keeps anything of earlier steps.
    """

    count: int | None
    has_state: bool


@dataclass(frozen=True, slots=True)
class History:
    """What the files of a run that is resumed say about its steps.

    Attributes
    ----------
    last : int
        The last step; 0 if there is none.
    last_of_each : sequence of int
        The last step of each optimizer.
    skipped : sequence of int
        The steps that gradient scaling skipped, ascending.
    steps_before : sequence of int
        How many steps each optimizer had done, by its own count, before the run's first step.
    last_time : int
        Time of the last step, in microseconds since 1970.
    """

    last: int
    last_of_each: Sequence[int]
    skipped: Sequence[int]
    steps_before: Sequence[int]
    last_time: int = 0


class Position(NamedTuple):
    """The last step of the run, and the last step of each optimizer."""

    step: int
    own: list[int]


@dataclass(frozen=True, slots=True)
class Rollback:
    """Event: remove the rows after ``step``, since these steps will be recorded again.

    Of the layers of optimizer ``i``, remove the rows after ``own[i]``.
    """

    step: int
    own: Sequence[int]

    def last_steps(self, layers: Sequence[LayerInfo]) -> dict[str, int]:
        """Return, for each layer whose last kept step differs from ``step``, that last step."""
        return {
            layer.name: self.own[layer.optimizer]
            for layer in layers
            if layer.optimizer < len(self.own) and self.own[layer.optimizer] != self.step
        }


@dataclass(frozen=True, slots=True)
class Gap:
    """Event: the run continues after step ``until``, but has rows up to ``after`` only."""

    after: int
    until: int


@dataclass(frozen=True, slots=True)
class StepsBefore:
    """Event: ``run.json`` is to say how many steps each optimizer had done before the run."""

    counts: tuple[int, ...]


Event = Rollback | Gap | StepsBefore


class StepCounter:
    """Owns the step numbers of a run and of its optimizers.

    A new run counts from 1. Where a run is resumed, each optimizer continues from a step that is,
    in order of preference: the one passed to :meth:`go_to`; the one implied by the optimizer's own
    step count (steps skipped by gradient scaling are not in that count); the last recorded step,
    if it keeps state but no count. An optimizer without any state says only by its first step
    whether it keeps none at all (then it continues after the last recorded step) or was created
    without loading a checkpoint (then it begins at step 1 again).

    Parameters
    ----------
    counts : sequence of (int or None)
        Each optimizer's own count of steps when the recorder is attached.
    history : History, optional
        Of the run that is resumed; None for a new run.

    Attributes
    ----------
    state : State
        What is known so far.
    """

    def __init__(self, counts: Sequence[int | None], history: History | None = None) -> None:
        self._is_resumed = history is not None
        self._initial = tuple(count or 0 for count in counts)
        self._history = history or History(0, (0,) * len(counts), (), self._initial)
        self._steps_before = tuple(self._history.steps_before)
        self._step = self._history.last
        self._own = list(self._history.last_of_each)
        self._unknown = list(range(len(counts)))
        self.state = State.UNKNOWN if self._is_resumed else State.AWAITING_FIRST_STEP

    @property
    def unknown(self) -> Sequence[int]:
        """The optimizers that have not been located: those whose progress is to be given."""
        return self._unknown

    @property
    def is_resumed(self) -> bool:
        """Whether the run had been recorded before."""
        return self._is_resumed

    @property
    def last_time(self) -> int:
        """Time of the last step of the run that is resumed, in microseconds since 1970; or 0."""
        return self._history.last_time

    def is_known(self, optimizer: int) -> bool:
        """Return whether the number of an optimizer's next step is known."""
        return optimizer not in self._unknown or self.state is State.AWAITING_FIRST_STEP

    def next_step(self, optimizer: int) -> int:
        """Return the number of an optimizer's next step; an estimate while it is not known."""
        return self._own[optimizer] + 1

    def position(self, progress: Mapping[int, Progress] = MappingProxyType({})) -> Position:
        """Return the steps that were done last.

        Parameters
        ----------
        progress : mapping of int to Progress
            Of the optimizers in :attr:`unknown`. Used in ``State.UNKNOWN`` only: then the position
            is an estimate.
        """
        if self.state is not State.UNKNOWN:
            return Position(self._step, list(self._own))
        implied = [self._implied(progress[i].count, i) for i in self._unknown]
        own = [last if n is None else n for n, last in zip(implied, self._own, strict=True)]
        return Position(max((n for n in implied if n is not None), default=self._step), own)

    def go_to(self, own: Sequence[int]) -> list[Event]:
        """Continue each optimizer after the step given for it, whatever else is known.

        Leads to ``AWAITING_FIRST_STEP``, or leaves it at ``COUNTING``.
        """
        self._own = list(own)
        if self.state is not State.COUNTING:
            self.state = State.AWAITING_FIRST_STEP
        return self._continue_after(Rollback(max(own), tuple(own)))

    def before_step(self, progress: Mapping[int, Progress]) -> list[Event]:
        """Locate, before any optimizer's step, those that can be.

        Leads from ``AWAITING_FIRST_STEP`` to ``COUNTING``; from ``UNKNOWN`` or ``PARTLY_KNOWN`` to
        ``COUNTING`` if all are located, and to ``PARTLY_KNOWN`` if some are.

        Parameters
        ----------
        progress : mapping of int to Progress
            Of the optimizers in :attr:`unknown`.
        """
        found: dict[int, int | None] = {}
        before = list(self._steps_before)
        for i in self._unknown:
            count, has_state = progress[i].count, progress[i].has_state
            given = self.state is State.AWAITING_FIRST_STEP
            step = self._own[i] if given else self._implied(count, i)
            if step is None and not has_state:
                continue  # its first step will tell
            found[i] = step
            if step is not None:
                done = step - sum(skipped <= step for skipped in self._history.skipped)
                before[i] = (self._initial[i] if count is None else count) - done
        return [*self._note(before), *self._locate(found)]

    def after_step(self, optimizer: int, *, has_state: bool) -> list[Event]:
        """Locate all optimizers after the first step of one that had no state before it.

        Leads to ``COUNTING``, unless this optimizer was located before its step.

        Parameters
        ----------
        optimizer : int
            The optimizer that has done a step.
        has_state : bool
            Whether it keeps any state now: then it was created without loading a checkpoint.
        """
        if self.is_known(optimizer):
            return []
        before = [
            0 if has_state and i in self._unknown else n for i, n in enumerate(self._steps_before)
        ]
        found = dict.fromkeys(self._unknown, 0 if has_state else None)
        return [*self._note(before), *self._locate(found)]

    def count(self, optimizer: int) -> tuple[int, bool]:
        """Count a step that an optimizer has done.

        Returns
        -------
        int
            The number of the step.
        bool
            Whether no optimizer did a step of this number before.
        """
        step = self._own[optimizer] = self._own[optimizer] + 1
        first = step > self._step
        if first:
            self._step = step
        return step, first

    def _implied(self, count: int | None, optimizer: int) -> int | None:
        """Return the step after which an optimizer had done as many as it counts, if it counts."""
        if count is None:
            return None
        step = max(count - self._steps_before[optimizer], 0)
        for skipped in self._history.skipped:
            step += skipped <= step
        return step

    def _note(self, before: Sequence[int]) -> list[Event]:
        if tuple(before) == self._steps_before:
            return []
        self._steps_before = tuple(before)
        return [StepsBefore(self._steps_before)]

    def _locate(self, found: Mapping[int, int | None]) -> list[Event]:
        """Set the last steps of the optimizers found; None for those without a count."""
        if not found:
            return []
        known = [step for step in found.values() if step is not None]
        known += [step for i, step in enumerate(self._own) if i not in self._unknown]
        furthest = [max(known)] if known else []
        for i, step in found.items():
            # One that keeps no count is no further than those that do: they share a checkpoint.
            last = self._history.last_of_each[i]
            self._own[i] = min([last, *furthest]) if step is None else step
        self._unknown = [i for i in self._unknown if i not in found]
        was, self.state = self.state, State.PARTLY_KNOWN if self._unknown else State.COUNTING
        if was is State.AWAITING_FIRST_STEP:
            return []
        last = max(step for i, step in enumerate(self._own) if i not in self._unknown)
        own = [last if i in self._unknown else step for i, step in enumerate(self._own)]
        return self._continue_after(Rollback(last, tuple(own)))

    def _continue_after(self, rollback: Rollback) -> list[Event]:
        recorded, self._step = self._step, rollback.step
        if rollback.step <= recorded:
            return [rollback]
        # A rollback that failed earlier may have left rows of steps that were done again since,
        # without being recorded. Remove them before the run continues after a gap.
        rest = Rollback(recorded, tuple(min(step, recorded) for step in rollback.own))
        return [*([Gap(recorded, rollback.step)] if recorded else []), rest, rollback]


def checked_state(given: Any, optimizers: int) -> list[int]:
    """Return the last step of each optimizer from what ``Recorder.state_dict`` returned.

    Raises
    ------
    UsageError
        There is no ``step`` in it that is an integer of 0 or more.
    """
    step = given.get("step") if isinstance(given, Mapping) else None
    own: Any = given.get("own", []) if isinstance(given, Mapping) else []
    if not _is_step(step) or not isinstance(own, list) or not all(map(_is_step, own)):
        raise UsageError(
            f"load_state_dict of a recorder got {given!r}; give what its state_dict returned, "
            'or {"step": 1000}'
        )
    # If it was saved with another number of optimizers, all continue after the same step.
    return own if len(own) == optimizers else [step] * optimizers


def _is_step(value: Any) -> TypeGuard[int]:
    # Half of what a reader accepts, so that there is room for the steps to come.
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    return is_integer and 0 <= value <= LAST_STEP // 2
