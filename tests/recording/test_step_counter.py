"""The state machine of step numbers in isolation: progress in, step numbers and events out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from trustlens.errors import UsageError
from trustlens.recording.step_counter import (
    Event,
    Gap,
    History,
    Progress,
    Rollback,
    State,
    StepCounter,
    StepsBefore,
    checked_state,
)
from trustlens.store.run_info import LayerInfo

EMPTY = Progress(None, has_state=False)
"""Progress of an optimizer that has done no step, or that keeps no state."""

UNCOUNTED = Progress(None, has_state=True)
"""Progress of an optimizer that keeps state but no count, such as SGD with momentum."""


def counted(count: int) -> Progress:
    return Progress(count, has_state=True)


def seen(*progress: Progress) -> dict[int, Progress]:
    return dict(enumerate(progress))


def history(*last_of_each: int, skipped: Sequence[int] = (), before: Sequence[int] = ()) -> History:
    return History(
        last=max(last_of_each),
        last_of_each=last_of_each,
        skipped=tuple(skipped),
        steps_before=before or (0,) * len(last_of_each),
    )


def resumed(*last_of_each: int, **options: Any) -> StepCounter:
    return StepCounter([None] * len(last_of_each), history(*last_of_each, **options))


def rollback(step: int, *own: int) -> Rollback:
    return Rollback(step, own or (step,))


# A new run


def test_a_new_run_counts_from_one() -> None:
    counter = StepCounter([None])
    assert (counter.state, counter.is_resumed) == (State.AWAITING_FIRST_STEP, False)
    assert counter.is_known(0)
    assert counter.position() == (0, [0])
    assert counter.before_step(seen(EMPTY)) == []
    assert counter.state is State.COUNTING
    numbers = []
    for _ in range(3):
        assert counter.before_step({}) == []  # needs no progress any more
        numbers.append((counter.next_step(0), *counter.count(0)))
        assert counter.after_step(0, has_state=True) == []
    assert numbers == [(1, 1, True), (2, 2, True), (3, 3, True)]
    assert counter.position() == (3, [3])


def test_next_step_does_not_count_a_step() -> None:
    counter = StepCounter([None])
    counter.before_step(seen(EMPTY))
    assert [counter.next_step(0) for _ in range(3)] == [1, 1, 1]
    assert counter.position() == (0, [0])


def test_optimizers_that_step_at_different_times_share_numbers() -> None:
    counter = StepCounter([None, None])
    counter.before_step(seen(EMPTY, EMPTY))
    assert counter.state is State.COUNTING  # both, at the first step of either
    assert [counter.count(i) for i in (0, 1, 0, 0, 1)] == [
        (1, True),
        (1, False),
        (2, True),
        (3, True),
        (2, False),
    ]
    assert counter.position() == (3, [3, 2])


def test_a_checkpoint_loaded_before_the_first_step_changes_the_steps_before_the_run() -> None:
    counter = StepCounter([None, 3])
    assert counter.before_step(seen(counted(5), counted(3))) == [StepsBefore((5, 3))]
    assert counter.count(0) == (1, True)


def test_a_count_that_cannot_be_read_without_synchronizing_is_assumed_unchanged() -> None:
    counter = StepCounter([4])
    assert counter.before_step(seen(Progress(None, has_state=True))) == []
    assert counter.state is State.COUNTING


# The step that a resumed run continues after, in order of preference


def test_first_preference_is_the_step_passed_to_go_to() -> None:
    counter = resumed(12)
    assert counter.state is State.UNKNOWN
    assert counter.go_to([8]) == [rollback(8)]
    assert counter.state is State.AWAITING_FIRST_STEP
    assert counter.position(seen(counted(5))) == (8, [8])
    # The optimizer's own count differs, which changes only the number of steps before the run.
    assert counter.before_step(seen(counted(5))) == [StepsBefore((-3,))]
    assert counter.count(0) == (9, True)


def test_second_preference_is_the_optimizers_own_count() -> None:
    counter = resumed(12)
    assert not counter.is_known(0)
    assert counter.position(seen(counted(5))) == (5, [5])
    assert counter.state is State.UNKNOWN  # `position` changes nothing
    assert counter.before_step(seen(counted(5))) == [rollback(5)]
    assert counter.state is State.COUNTING
    assert counter.count(0) == (6, True)


def test_a_count_includes_the_steps_before_the_run() -> None:
    counter = resumed(12, before=[100])
    assert counter.position(seen(counted(107))) == (7, [7])
    assert counter.before_step(seen(counted(107))) == [rollback(7)]


def test_a_count_below_the_steps_before_the_run_restarts_the_run_at_step_1() -> None:
    counter = resumed(12, before=[100])
    assert counter.before_step(seen(counted(40))) == [StepsBefore((40,)), rollback(0)]
    assert counter.count(0) == (1, True)


@pytest.mark.parametrize(
    ("skipped", "count", "step"),
    [
        ([1, 2, 6, 11], 3, 5),  # steps 3, 4 and 5 changed the weights
        ([1, 2, 6, 11], 5, 8),  # 3, 4, 5, 7 and 8
        ([6], 5, 5),  # the count is 5 after step 6, too: the earlier step is chosen
        ([1, 2, 3], 0, 0),
    ],
)
def test_steps_skipped_by_gradient_scaling_are_not_in_a_count(
    skipped: list[int], count: int, step: int
) -> None:
    counter = resumed(12, skipped=skipped)
    assert counter.before_step(seen(counted(count))) == [rollback(step)]


def test_third_preference_is_the_last_recorded_step() -> None:
    counter = resumed(12)
    assert counter.position(seen(UNCOUNTED)) == (12, [12])
    assert counter.before_step(seen(UNCOUNTED)) == [rollback(12)]
    assert counter.count(0) == (13, True)


def test_an_optimizer_that_creates_state_in_its_first_step_begins_at_step_1() -> None:
    counter = resumed(12, before=[7])
    assert counter.before_step(seen(EMPTY)) == []
    assert counter.state is State.UNKNOWN
    assert not counter.is_known(0)
    assert counter.after_step(0, has_state=True) == [StepsBefore((0,)), rollback(0)]
    assert counter.state is State.COUNTING
    assert counter.count(0) == (1, True)


def test_an_optimizer_that_never_has_state_continues_after_the_last_step() -> None:
    counter = resumed(12, before=[7])
    assert counter.before_step(seen(EMPTY)) == []
    assert counter.after_step(0, has_state=False) == [rollback(12)]
    assert counter.count(0) == (13, True)


def test_a_step_ahead_of_the_run_leaves_a_gap() -> None:
    counter = resumed(5)
    # First to step 5, since an earlier rollback that failed may have left rows after it.
    assert counter.before_step(seen(counted(9))) == [Gap(5, 9), rollback(5), rollback(9)]
    assert counter.count(0) == (10, True)


def test_a_step_ahead_of_a_run_without_rows_leaves_no_gap() -> None:
    assert StepCounter([None]).go_to([100]) == [rollback(0), rollback(100)]


# In the middle of a run


def test_a_rollback_during_a_run() -> None:
    counter = StepCounter([None])
    counter.before_step(seen(EMPTY))
    for _ in range(13):
        counter.count(0)
    assert counter.go_to([8]) == [rollback(8)]
    assert counter.state is State.COUNTING
    assert counter.before_step({}) == []
    assert counter.count(0) == (9, True)
    assert counter.go_to([20]) == [Gap(9, 20), rollback(9), rollback(20)]
    assert counter.count(0) == (21, True)


def test_each_optimizer_goes_to_its_own_step() -> None:
    counter = resumed(13, 4)
    assert counter.go_to([8, 2]) == [rollback(8, 8, 2)]
    counter.before_step(seen(counted(8), EMPTY))
    assert [counter.count(i) for i in (0, 1)] == [(9, True), (3, False)]


def test_the_last_of_two_calls_of_go_to_wins() -> None:
    counter = resumed(12)
    counter.go_to([8])
    assert counter.go_to([3]) == [rollback(3)]
    assert counter.before_step(seen(counted(3))) == []
    assert counter.position() == (3, [3])


# Several optimizers, located one after the other


def test_an_optimizer_without_a_count_is_at_most_as_far_as_those_with_one() -> None:
    counter = resumed(9, 9)
    assert counter.before_step(seen(UNCOUNTED, counted(5))) == [rollback(5, 5, 5)]
    assert counter.state is State.COUNTING


def test_without_any_count_each_continues_after_its_own_last_step() -> None:
    counter = resumed(6, 3)
    assert counter.before_step(seen(UNCOUNTED, UNCOUNTED)) == [rollback(6, 6, 3)]


def test_an_optimizer_without_state_is_located_after_its_first_step() -> None:
    counter = resumed(9, 9)
    assert counter.before_step(seen(counted(5), EMPTY)) == [rollback(5, 5, 5)]
    assert counter.state is State.PARTLY_KNOWN
    assert (counter.is_known(0), counter.is_known(1)) == (True, False)
    assert counter.count(0) == (6, True)
    assert counter.unknown == [1]
    assert counter.before_step({1: EMPTY}) == []  # before the other's step
    assert counter.after_step(1, has_state=True) == [rollback(6, 6, 0)]
    assert counter.state is State.COUNTING
    assert counter.count(1) == (1, False)
    assert counter.position() == (6, [6, 1])


def test_an_optimizer_that_never_has_state_continues_at_the_step_of_the_others() -> None:
    counter = resumed(9, 9)
    counter.before_step(seen(counted(5), EMPTY))
    counter.count(0)
    assert counter.after_step(1, has_state=False) == [rollback(6, 6, 6)]


def test_a_state_loaded_between_the_steps_of_two_optimizers_is_used() -> None:
    counter = resumed(9, 9)
    counter.before_step(seen(counted(5), EMPTY))
    counter.count(0)
    assert counter.before_step(seen(counted(6), counted(4))) == [rollback(6, 6, 4)]
    assert counter.state is State.COUNTING


def test_go_to_applies_to_all_optimizers_although_some_are_located() -> None:
    counter = resumed(9, 9)
    counter.before_step(seen(counted(5), EMPTY))
    counter.count(0)
    assert counter.go_to([2, 1]) == [rollback(2, 2, 1)]
    assert counter.state is State.AWAITING_FIRST_STEP
    assert counter.is_known(1)
    # Only the count of the optimizer that has not stepped yet is read.
    assert counter.before_step(seen(counted(99), counted(1))) == []
    assert counter.state is State.COUNTING
    assert counter.position() == (2, [2, 1])


def test_the_first_step_of_one_optimizer_without_state_locates_all_others_without_state() -> None:
    counter = resumed(9, 7)
    assert counter.before_step(seen(EMPTY, EMPTY)) == []
    assert counter.after_step(1, has_state=True) == [rollback(0, 0, 0)]
    assert counter.state is State.COUNTING


# Closing the run


def test_a_run_closed_before_its_first_step_keeps_its_position() -> None:
    counter = resumed(12, 4)
    assert counter.before_step(seen(EMPTY, EMPTY)) == []
    assert counter.state is State.UNKNOWN
    assert counter.position(seen(EMPTY, EMPTY)) == (12, [12, 4])
    # A step that gradient scaling skipped may still be counted.
    assert counter.count(1) == (5, False)
    assert counter.count(0) == (13, True)
    assert counter.position(seen(EMPTY, EMPTY)) == (13, [13, 5])


class Run:
    """A model of a run's rows as a list, to which a counter's events are applied."""

    def __init__(self, before: int) -> None:
        self.batches: list[int] = []  # the batch that each step was trained on
        self.skipped: list[int] = []
        self.before = (before,)

    def resume(self, count: int) -> StepCounter:
        if not self.batches:
            return StepCounter([count])
        last = len(self.batches)
        return StepCounter([count], history(last, skipped=self.skipped, before=self.before))

    def apply(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case Rollback(step):
                    del self.batches[step:]
                    self.skipped = [each for each in self.skipped if each <= step]
                case StepsBefore(counts):
                    self.before = counts
                case Gap():
                    raise AssertionError("every batch was recorded")


@pytest.mark.parametrize("seed", range(60))
def test_steps_match_batches_in_jobs_that_are_killed_and_resumed(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    before = chance.choice([0, 17])
    run, saved = Run(before), (0, before)  # a checkpoint: number of batches, optimizer's own count
    for _ in range(6):
        batches, count = saved
        counter = run.resume(count)
        if chance.random() < 0.5:
            run.apply(counter.go_to([batches]))
        run.apply(counter.before_step(seen(counted(count) if count else EMPTY)))
        run.apply(counter.after_step(0, has_state=True))
        assert counter.state is State.COUNTING
        for _ in range(chance.randrange(1, 9)):
            batches += 1
            assert counter.count(0) == (batches, True)
            run.batches.append(batches)
            if chance.random() < 0.2:
                run.skipped.append(batches)
            else:
                count += 1
                # Save after steps that count only: the optimizer's count does not show whether
                # a skipped step came before or after the checkpoint.
                saved = chance.choice([saved, (batches, count)])
        assert run.batches == list(range(1, batches + 1))


# Rollbacks of layers, and the recorder's state


def test_a_rollback_returns_the_layers_with_another_last_step() -> None:
    layers = [LayerInfo(name, (2,), "float32", optimizer=i) for name, i in (("a", 0), ("b", 1))]
    layers.append(LayerInfo("of an earlier model", (2,), "float32", optimizer=2))
    assert rollback(8, 8, 2).last_steps(layers) == {"b": 2}


@pytest.mark.parametrize(
    ("given", "optimizers", "own"),
    [
        ({"step": 8, "own": [8, 3]}, 2, [8, 3]),
        ({"step": 8, "own": [8, 3]}, 1, [8]),  # saved with another number of optimizers
        ({"step": 1000}, 3, [1000] * 3),
        ({"step": 0}, 1, [0]),
    ],
)
def test_the_last_steps_are_read_from_a_checkpoint(
    given: Any, optimizers: int, own: list[int]
) -> None:
    assert checked_state(given, optimizers) == own


@pytest.mark.parametrize(
    "given",
    [{}, {"step": -1}, {"step": 1.5}, {"step": True}, {"step": 8, "own": 8}, {"own": [8]}, None],
)
def test_an_invalid_state_dict_is_refused(given: Any) -> None:
    with pytest.raises(UsageError, match="give what its state_dict returned"):
        checked_state(given, 1)
