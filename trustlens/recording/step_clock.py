"""Times of steps: the wall clock, which may be set back, made monotonic."""

from __future__ import annotations

import time


class StepClock:
    """Returns the time in microseconds since 1970, in UTC; it never decreases.

    It follows the wall clock. While the wall clock is behind the last time returned (it was set
    back, or the run is resumed on another machine), the time that passes is added to that instead.

    Parameters
    ----------
    last : int
        The last time that was returned before, if the run is resumed.
    """

    def __init__(self, last: int = 0) -> None:
        self._last = last
        self._read = time.monotonic_ns()

    def now(self) -> int:
        """Return the time."""
        read = time.monotonic_ns()
        passed, self._read = (read - self._read) // 1000, read
        wall = time.time_ns() // 1000
        self._last = wall if wall >= self._last else self._last + passed
        return self._last
