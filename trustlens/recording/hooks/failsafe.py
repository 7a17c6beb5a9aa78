"""Keeps errors of the recorder away from the training loop."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Final, TypeVar

from trustlens.store.location import Location

Result = TypeVar("Result")

_log: Final = logging.getLogger("trustlens")


class Failsafe:
    """Calls functions until one of them raises or the recording is over; never raises itself.

    The first error becomes one warning: recording stops, and the training goes on.

    Parameters
    ----------
    directory : Location
        The run, named in the warning.
    release : callable
        Frees what measuring needs; called after the first error.
    """

    def __init__(self, directory: Location, release: Callable[[], None]) -> None:
        self.failure: str | None = None
        self.over = False
        self.directory = directory
        self._release = release
        self._process = os.getpid()
        self._warned: set[str] = set()

    @property
    def is_fork(self) -> bool:
        """Whether this process is a fork of the one that records; it has no writer thread."""
        return self._process != os.getpid()

    def __call__(self, work: Callable[[], Result], /) -> Result | None:
        """Call a function and return its result; None if it raised or recording has ended."""
        if self.failure is None and not self.over and not self.is_fork:
            try:
                return work()
            except Exception as error:  # noqa: BLE001 — the training must not see it
                self.fail(error)
        return None

    def at_last(self, work: Callable[[], None]) -> None:
        """Call a function when the recorder is closed, also if recording has failed before."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 — the training must not see it
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Stop recording."""
        # The hooks stay until `close`, since torch may be iterating over them now.
        if self.failure is not None:
            return
        self.failure = f"{type(error).__name__}: {error}"  # the error refers to tensors
        self._release()
        _log.warning(
            "trustlens stopped recording into '%s'; the training goes on. %s",
            self.directory,
            self.failure,
        )

    def warn(self, message: str, about: str | None = None) -> None:
        """Warn the user, once per message, or once per subject if ``about`` names one."""
        key = about or message
        if key not in self._warned:
            self._warned.add(key)
            _log.warning(message)
