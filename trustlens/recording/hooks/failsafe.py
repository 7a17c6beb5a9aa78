"""Promise 1: an error inside the recorder becomes one warning, and the training goes on."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Final

from trustlens.recording.hooks.optimizer import Result
from trustlens.store.location import Place

_log: Final = logging.getLogger("trustlens")


class Failsafe:
    """Does work until some of it fails or the recording is over; called with it, it never raises.

    Parameters
    ----------
    directory : Place
        The run, for the warning.
    release : callable
        Gives back what measuring needs, once the recording has failed.
    """

    def __init__(self, directory: Place, release: Callable[[], None]) -> None:
        self.failure: str | None = None
        self.over = False
        self._directory = directory
        self._release = release
        self._process = os.getpid()
        self._warned: set[str] = set()

    @property
    def is_fork(self) -> bool:
        """Whether this is a forked process: it has no writer thread, and the run is not its own."""
        return self._process != os.getpid()

    def __call__(self, work: Callable[[], Result], /) -> Result | None:
        """Do some work and return its result, or None if it failed or is not to be done."""
        if self.failure is None and not self.over and not self.is_fork:
            try:
                return work()
            except Exception as error:  # noqa: BLE001 — promise 1: the training must not see it
                self.fail(error)
        return None

    def at_last(self, work: Callable[[], None]) -> None:
        """Do what is done at the end in any case, whatever failed before."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 — promise 1: the training must not see it
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """End the recording; nothing is done any more."""
        # The hooks stay until close: torch walks through them at this moment.
        if self.failure is not None:
            return
        self.failure = f"{type(error).__name__}: {error}"  # the error itself holds what was at work
        self._release()
        _log.warning(
            "trustlens stopped recording into '%s'; the training goes on. %s",
            self._directory,
            self.failure,
        )

    def warn(self, message: str, about: str | None = None) -> None:
        """Warn the user, once of each thing that it may be about."""
        key = about or message
        if key not in self._warned:
            self._warned.add(key)
            _log.warning(message)
