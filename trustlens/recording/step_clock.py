"""A wall clock that never goes back, for the times of steps."""

from __future__ import annotations

import time


class StepClock:
    """Returns times in microseconds since 1970 (UTC), each at least as late as the one before.

    Normally the result is the wall clock's time. The wall clock can be earlier than the time
    returned last, if the clock was set back or if the run was resumed on another machine. Then the
    result is the time returned last plus the time that has passed since.

    Parameters
    ----------
    last : int
        Time of the last recorded step if the run is resumed, else 0.
    """

    def __init__(self, last: int = 0) -> None:
        self._last = last
        self._read = time.monotonic_ns()

    def now(self) -> int:
        """Return the time in microseconds since 1970."""
        read = time.monotonic_ns()
        passed, self._read = (read - self._read) // 1000, read
        wall = time.time_ns() // 1000
        self._last = wall if wall >= self._last else self._last + passed
        return self._last
