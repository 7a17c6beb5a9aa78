"""Count the steps of a run and of each of its optimizers, also in a resumed run.

The counter itself accesses neither files nor optimizers. The recorder passes in the progress of the
optimizers. The counter returns events, such as a rollback, and the recorder applies them.
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
    """All step numbers are known. The optimizers' own step counts will be read just before the next
    step, since a checkpoint may be loaded into the optimizers until then."""
    COUNTING = auto()
    """All step numbers are known, and each step adds 1."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of an optimizer according to its state.

    Attributes
    ----------
    count : int, optional
        Number of steps done, according to the optimizer's own step count. None if the optimizer
        keeps no count, or if the count was not read because it is on an accelerator.
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
        The last step of each optimizer; equal to ``last`` if the files do not show it.
    skipped : sequence of int
        The steps that gradient scaling skipped, ascending.
    steps_before : sequence of int
        For each optimizer, the value of its own step count before the run's first step. The
        value is above 0 if the optimizer had been used before the run.
    last_time : int
        Time of the last step, in microseconds since 1970; 0 if no step is recorded.
    """

    last: int
    last_of_each: Sequence[int]
    skipped: Sequence[int]
    steps_before: Sequence[int]
    last_time: int = 0


class Position(NamedTuple):
    """The last ``step`` of the run, and the last step of each optimizer (``own``)."""

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
        """Return, by name, the layers that keep their rows up to a step other than :attr:`step`.

        The values are these steps. Layers that keep their rows up to :attr:`step` are left out.
        """
        return {
            layer.name: self.own[layer.optimizer]
            for layer in layers
            if layer.optimizer < len(self.own) and self.own[layer.optimizer] != self.step
        }


@dataclass(frozen=True, slots=True)
class Gap:
    """Event: the run continues after step ``until``, but is recorded only up to step ``after``."""

    after: int
    until: int


@dataclass(frozen=True, slots=True)
class StepsBefore:
    """Event: write ``counts`` to ``run.json`` as the new :attr:`History.steps_before`."""

    counts: tuple[int, ...]


Event = Rollback | Gap | StepsBefore


class StepCounter:
    """Counts the steps of a run and of its optimizers.

    A new run counts from 1. In a resumed run, to "locate" an optimizer means to determine the step
    after which it continues. The first rule that applies decides:

    1. A step was passed to :meth:`go_to`: this step.
    2. The optimizer keeps a step count: the step of the run at which it had this count. The count
       excludes steps that gradient scaling skipped.
    3. The optimizer has state, but no count: the last recorded step.
    4. The optimizer has no state before its first step, but has state after it: it was created
       without loading a checkpoint, and begins at step 1 again.
    5. The optimizer has no state after its first step either: the last recorded step.

    Parameters
    ----------
    counts : sequence of (int or None)
        Each optimizer's own step count when the recorder is created; None if it keeps no count.
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
        """Indices of the optimizers that are not located yet.

        :meth:`position` and :meth:`before_step` need the progress of these optimizers.
        """
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
        """Return the number of an optimizer's next step.

        It is an estimate as long as :meth:`is_known` returns False.
        """
        return self._own[optimizer] + 1

    def position(self, progress: Mapping[int, Progress] = MappingProxyType({})) -> Position:
        """Return the last step of the run and of each optimizer.

        In the state ``UNKNOWN``, these are estimates.

        Parameters
        ----------
        progress : mapping of int to Progress
            Progress of each optimizer in :attr:`unknown`, by index. Needed in ``UNKNOWN`` only.
        """
        if self.state is not State.UNKNOWN:
            return Position(self._step, list(self._own))
        implied = [self._implied(progress[i].count, i) for i in self._unknown]
        own = [last if n is None else n for n, last in zip(implied, self._own, strict=True)]
        return Position(max((n for n in implied if n is not None), default=self._step), own)

    def go_to(self, own: Sequence[int]) -> list[Event]:
        """Continue each optimizer after a given step, regardless of its own step count.

        ``own[i]`` is the step for optimizer ``i``. Return the events to apply. The state
        becomes ``AWAITING_FIRST_STEP``, or stays ``COUNTING``.
        """
        self._own = list(own)
        if self.state is not State.COUNTING:
            self.state = State.AWAITING_FIRST_STEP
        return self._continue_after(Rollback(max(own), tuple(own)))

    def before_step(self, progress: Mapping[int, Progress]) -> list[Event]:
        """Locate all optimizers that have a step count or state, and return the events to apply.

        Until the state is ``COUNTING``, the recorder calls this before each step of any optimizer.
        The state changes from ``AWAITING_FIRST_STEP`` to ``COUNTING``; from ``UNKNOWN`` or
        ``PARTLY_KNOWN``, it changes to ``COUNTING`` if all optimizers are located, and to
        ``PARTLY_KNOWN`` if some are.

        Parameters
        ----------
        progress : mapping of int to Progress
            Progress of each optimizer in :attr:`unknown`, by index.
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
        """Locate the remaining optimizers, after one of them did its first step.

        Return the events to apply. The state becomes ``COUNTING``. If the optimizer that did the
        step was located before, nothing is done.

        Parameters
        ----------
        optimizer : int
            Index of the optimizer that has done a step.
        has_state : bool
            Whether the optimizer has state now. If so, since it had none before the step, it was
            created without loading a checkpoint.
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
        """Convert an optimizer's own step count to a step of the run; None stays None.

        The own count includes steps done before the run and excludes skipped steps.
        """
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
        """Set the last step of each optimizer in `found` and return the events to apply.

        `found` maps the optimizer's index to this step, or to None if the optimizer has no count.
        """
        if not found:
            return []
        known = [step for step in found.values() if step is not None]
        known += [step for i, step in enumerate(self._own) if i not in self._unknown]
        furthest = [max(known)] if known else []
        for i, step in found.items():
            # An optimizer without a count has done at most as many steps as those with a count,
            # since all were saved in the same checkpoint.
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
        # The run continues after a gap. An earlier rollback may have failed to remove rows. The
        # training then did these steps again, without recording them: remove the old rows first.
        rest = Rollback(recorded, tuple(min(step, recorded) for step in rollback.own))
        return [*([Gap(recorded, rollback.step)] if recorded else []), rest, rollback]


def checked_state(given: Any, optimizers: int) -> list[int]:
    """Return the last step of each optimizer, from a dict such as ``Recorder.state_dict`` returns.

    ``optimizers`` is the number of optimizers that are being recorded now.

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
    # If the checkpoint has another number of optimizers, all continue after the same step.
    return own if len(own) == optimizers else [step] * optimizers


def _is_step(value: Any) -> TypeGuard[int]:
    # The limit is half of the largest step that a reader accepts, to leave room for later steps.
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    return is_integer and 0 <= value <= LAST_STEP // 2
