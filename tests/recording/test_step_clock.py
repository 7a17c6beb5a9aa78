"""Times of steps when the wall clock is set forward or back."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

import trustlens
from trustlens.recording.step_clock import StepClock

SECOND = 10**9  # nanoseconds


class Clocks:
    """A wall clock that can be set, and a monotonic clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, wall: int) -> None:
        self.wall, self.passed = wall * SECOND, 77 * SECOND
        monkeypatch.setattr(time, "time_ns", lambda: self.wall)
        monkeypatch.setattr(time, "monotonic_ns", lambda: self.passed)

    def advance(self, seconds: float) -> None:
        self.wall += int(seconds * SECOND)
        self.passed += int(seconds * SECOND)


def test_the_clock_follows_the_wall_clock_but_never_goes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clocks = Clocks(monkeypatch, wall=1000)
    clock = StepClock()
    times = [clock.now()]
    for set_by in (0, 50, -3600, 0, 0, 7200):  # seconds
        clocks.advance(2)
        clocks.wall += set_by * SECOND
        times.append(clock.now())
    seconds = [time / 10**6 for time in times]
    assert seconds == [1000, 1002, 1054, 1056, 1058, 1060, 1000 + 6 * 2 + 50 - 3600 + 7200]


def test_the_times_of_a_resumed_run_continue_after_its_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = Clocks(monkeypatch, wall=1_700_000_000)
    for _ in range(2):
        parameter = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.SGD([parameter])
        with trustlens.record(optimizer, tmp_path / "run", resume=True):
            for _ in range(3):
                parameter.grad = torch.ones(3)
                clocks.advance(1)
                optimizer.step()
        clocks.wall -= 86_400 * SECOND  # then resume on a machine whose clock is one day slow
    times = trustlens.open_run(tmp_path / "run").steps()["time"]
    assert len(times) == 6
    assert times.is_monotonic_increasing
    assert (times.iloc[-1] - times.iloc[0]).total_seconds() == pytest.approx(5)
