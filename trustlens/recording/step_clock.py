"""When a step was done: by the wall clock, which may be set back, but never back itself."""

from __future__ import annotations

import time


class StepClock:
    """Tells the time in microseconds since 1970, in UTC; never less than it told before.

    It follows the wall clock. Once that is behind what was told (it was set back, or the run is
    resumed on another machine), it goes on from there by the time that passes.

    Parameters
    ----------
    told : int
        What was told before, of the run that is resumed.
    """

    def __init__(self, told: int = 0) -> None:
        self._told = told
        self._read = time.monotonic_ns()

    def now(self) -> int:
        """Return the time."""
        read = time.monotonic_ns()
        passed, self._read = (read - self._read) // 1000, read
        wall = time.time_ns() // 1000
        self._told = wall if wall >= self._told else self._told + passed
        return self._told
