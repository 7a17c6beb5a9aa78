"""Count the steps of a run and of each of its optimizers, also in a resumed run.

The counter has no side effects and reads no file and no optimizer: the recorder passes in the
optimizers' progress and applies the events that the counter returns.
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
    """State of a :class:`StepCounter`. The counter's methods document the transitions."""

    UNKNOWN = auto()
    """A resumed run: the step to continue from is not known for any optimizer."""
    PARTLY_KNOWN = auto()
    """A resumed run: the step to continue from is known for some optimizers only."""
    AWAITING_FIRST_STEP = auto()
    """All step numbers are known. The optimizers' own counts are read once, at the next step, since
    a checkpoint may be loaded into the optimizers until then."""
    COUNTING = auto()
    """All step numbers are known, and each step adds 1."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of an optimizer according to its state.

    Attributes
    ----------
    count : int, optional
        Number of steps done, by the optimizer's own count; None if it keeps none, or if the count
        was not read because it is on an accelerator.
    has_state : bool
        Whether the optimizer has state from earlier steps.
    """

    count: int | None
    has_state: bool


@dataclass(frozen=True, slots=True)
class History:
    """The steps of a run to resume, according to its files.

    Attributes
    ----------
    last : int
        The last step; 0 if no step is recorded.
    last_of_each : sequence of int
        The last step of each optimizer.
    skipped : sequence of int
        The steps that gradient scaling skipped, ascending.
    steps_before : sequence of int
        Number of steps, by its own count, that each optimizer had done before the run's first step.
    last_time : int
        Time of the last step, in microseconds since 1970.
    """

    last: int
    last_of_each: Sequence[int]
    skipped: Sequence[int]
    steps_before: Sequence[int]
    last_time: int = 0


class Position(NamedTuple):
    """The last step of the run, and the last step of each optimizer (``own``)."""

    step: int
    own: list[int]


@dataclass(frozen=True, slots=True)
class Rollback:
    """Event: remove the rows after ``step``, since these steps will be recorded again.

    For the layers of optimizer ``i``, remove the rows after ``own[i]`` instead.
    """

    step: int
    own: Sequence[int]

    def last_steps(self, layers: Sequence[LayerInfo]) -> dict[str, int]:
        """Return the last step to keep of each layer for which it differs from ``step``."""
        return {
            layer.name: self.own[layer.optimizer]
            for layer in layers
            if layer.optimizer < len(self.own) and self.own[layer.optimizer] != self.step
        }


@dataclass(frozen=True, slots=True)
class Gap:
    """Event: the run continues after step ``until``, but its last recorded step is ``after``."""

    after: int
    until: int


@dataclass(frozen=True, slots=True)
class StepsBefore:
    """Event: write to ``run.json`` how many steps each optimizer had done before the run."""

    counts: tuple[int, ...]


Event = Rollback | Gap | StepsBefore


class StepCounter:
    """Counts the steps of a run and of its optimizers.

    A new run counts from 1. In a resumed run, each optimizer continues after the step that is, in
    order of preference: passed to :meth:`go_to`; given by the optimizer's own step count (which
    excludes steps skipped by gradient scaling); the last recorded step, if the optimizer has state
    but no count. For an optimizer without state, its first step decides: if it has state after
    that step, it was created without loading a checkpoint and begins at step 1 again; if not, it
    continues after the last recorded step.

    "Locate" an optimizer means: determine the step after which it continues.

    Parameters
    ----------
    counts : sequence of (int or None)
        Each optimizer's own step count when the recorder is attached.
    history : History, optional
        History of the run to resume; None for a new run.

    Attributes
    ----------
    state : State
        Whether the step numbers are known.
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
        """Indices of the optimizers not located yet, whose progress the methods below need."""
        return self._unknown

    @property
    def is_resumed(self) -> bool:
        """Whether the run is resumed."""
        return self._is_resumed

    @property
    def last_time(self) -> int:
        """Time of the last recorded step in microseconds since 1970; 0 in a new run."""
        return self._history.last_time

    def is_known(self, optimizer: int) -> bool:
        """Return whether the number of an optimizer's next step is known."""
        return optimizer not in self._unknown or self.state is State.AWAITING_FIRST_STEP

    def next_step(self, optimizer: int) -> int:
        """Return the number of an optimizer's next step; an estimate if it is not known."""
        return self._own[optimizer] + 1

    def position(self, progress: Mapping[int, Progress] = MappingProxyType({})) -> Position:
        """Return the last step of the run and of each optimizer; an estimate in ``UNKNOWN``.

        Parameters
        ----------
        progress : mapping of int to Progress
            Progress of each optimizer in :attr:`unknown`. Needed in ``UNKNOWN`` only.
        """
        if self.state is not State.UNKNOWN:
            return Position(self._step, list(self._own))
        implied = [self._implied(progress[i].count, i) for i in self._unknown]
        own = [last if n is None else n for n, last in zip(implied, self._own, strict=True)]
        return Position(max((n for n in implied if n is not None), default=self._step), own)

    def go_to(self, own: Sequence[int]) -> list[Event]:
        """Continue each optimizer after the given step, regardless of its own count.

        The state becomes ``AWAITING_FIRST_STEP``, or stays ``COUNTING``.
        """
        self._own = list(own)
        if self.state is not State.COUNTING:
            self.state = State.AWAITING_FIRST_STEP
        return self._continue_after(Rollback(max(own), tuple(own)))

    def before_step(self, progress: Mapping[int, Progress]) -> list[Event]:
        """Locate all optimizers that have a count or state; call before any optimizer's step.

        The state changes from ``AWAITING_FIRST_STEP`` to ``COUNTING``; from ``UNKNOWN`` or
        ``PARTLY_KNOWN``, it changes to ``COUNTING`` if all optimizers are located, and to
        ``PARTLY_KNOWN`` if some are.

        Parameters
        ----------
        progress : mapping of int to Progress
            Progress of each optimizer in :attr:`unknown`.
        """
        found: dict[int, int | None] = {}
        before = list(self._steps_before)
        for i in self._unknown:
            count, has_state = progress[i].count, progress[i].has_state
            given = self.state is State.AWAITING_FIRST_STEP
            step = self._own[i] if given else self._implied(count, i)
            if step is None and not has_state:
                continue  # `after_step` will locate it
            found[i] = step
            if step is not None:
                done = step - sum(skipped <= step for skipped in self._history.skipped)
                before[i] = (self._initial[i] if count is None else count) - done
        return [*self._set_steps_before(before), *self._locate(found)]

    def after_step(self, optimizer: int, *, has_state: bool) -> list[Event]:
        """Locate all optimizers after the first step of one that had no state before it.

        The state becomes ``COUNTING``. Does nothing if this optimizer was located before its step.

        Parameters
        ----------
        optimizer : int
            Index of the optimizer that has done a step.
        has_state : bool
            Whether the optimizer has state now. If so, it was created without loading a checkpoint.
        """
        if self.is_known(optimizer):
            return []
        before = [
            0 if has_state and i in self._unknown else n for i, n in enumerate(self._steps_before)
        ]
        found = dict.fromkeys(self._unknown, 0 if has_state else None)
        return [*self._set_steps_before(before), *self._locate(found)]

    def count(self, optimizer: int) -> tuple[int, bool]:
        """Count a step of an optimizer.

        Returns
        -------
        int
            The number of the step.
        bool
            Whether this is the first step with this number, among all optimizers.
        """
        step = self._own[optimizer] = self._own[optimizer] + 1
        first = step > self._step
        if first:
            self._step = step
        return step, first

    def _implied(self, count: int | None, optimizer: int) -> int | None:
        """Return the step of the run that matches an optimizer's own count, if it has one."""
        if count is None:
            return None
        step = max(count - self._steps_before[optimizer], 0)
        for skipped in self._history.skipped:
            step += skipped <= step
        return step

    def _set_steps_before(self, before: Sequence[int]) -> list[Event]:
        if tuple(before) == self._steps_before:
            return []
        self._steps_before = tuple(before)
        return [StepsBefore(self._steps_before)]

    def _locate(self, found: Mapping[int, int | None]) -> list[Event]:
        """Set the last step of each optimizer in `found`, where None means: it has no count."""
        if not found:
            return []
        known = [step for step in found.values() if step is not None]
        known += [step for i, step in enumerate(self._own) if i not in self._unknown]
        furthest = [max(known)] if known else []
        for i, step in found.items():
            # An optimizer without a count is at most as far as those with one, since they were
            # saved in the same checkpoint.
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
        # An earlier rollback that failed may have left rows of steps that were repeated without
        # being recorded. Remove these rows before the run continues after a gap.
        rest = Rollback(recorded, tuple(min(step, recorded) for step in rollback.own))
        return [*([Gap(recorded, rollback.step)] if recorded else []), rest, rollback]


def checked_state(given: Any, optimizers: int) -> list[int]:
    """Return the last step of each optimizer from a dict as ``Recorder.state_dict`` returns it.

    Raises
    ------
    UsageError
        If ``step`` or an element of ``own`` is not an integer from 0 to half of ``LAST_STEP``.
    """
    step = given.get("step") if isinstance(given, Mapping) else None
    own: Any = given.get("own", []) if isinstance(given, Mapping) else []
    if not _is_step(step) or not isinstance(own, list) or not all(map(_is_step, own)):
        raise UsageError(
            f"load_state_dict of a recorder got {given!r}; give what its state_dict returned, "
            'or {"step": 1000}'
        )
    # If the number of optimizers has changed since, all continue after the same step.
    return own if len(own) == optimizers else [step] * optimizers


def _is_step(value: Any) -> TypeGuard[int]:
    # Half of the largest step that a reader accepts, to leave room for further steps.
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    return is_integer and 0 <= value <= LAST_STEP // 2
