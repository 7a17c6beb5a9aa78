"""Keep errors of the recorder out of the training loop."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Final, TypeVar

from trustlens.store.location import Location

Result = TypeVar("Result")

_log: Final = logging.getLogger("trustlens")


class Failsafe:
    """Calls the recorder's functions so that none of their errors reaches the training loop.

    After the first error, recording stops and training continues: the instance logs one warning,
    and further functions are called only while the recorder is being closed.

    Parameters
    ----------
    directory : Location
        Directory of the run, for the warning.
    release : callable
        Frees the memory used for measuring; called after the first error.

    Attributes
    ----------
    failure : str or None
        The first error as text; None if there was none.
    over : bool
        Whether the recorder was closed. The recorder sets it.
    directory : Location
        Directory of the run.
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
        """Whether this process is a fork of the recording process; a fork has no writer thread."""
        return self._process != os.getpid()

    def __call__(self, work: Callable[[], Result], /) -> Result | None:
        """Call a function and return its result.

        Return None if the function raised, or if it was not called because recording has ended.
        """
        if self.failure is None and not self.over and not self.is_fork:
            try:
                return work()
            except Exception as error:  # noqa: BLE001 — it must not stop the training
                self.fail(error)
        return None

    def call_while_closing(self, work: Callable[[], None]) -> None:
        """Call a function while the recorder is being closed, even if recording has failed."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 — it must not stop the training
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Stop recording because of an error, and warn the user; only the first call does so."""
        # The step hooks stay until the recorder is closed: torch may be iterating over them now.
        if self.failure is not None:
            return
        self.failure = f"{type(error).__name__}: {error}"  # not the error itself: it holds tensors
        self._release()
        _log.warning(
            "trustlens stopped recording into '%s'; training continues. %s",
            self.directory,
            self.failure,
        )

    def warn(self, message: str, about: str | None = None) -> None:
        """Log a warning, unless the same message was logged before.

        If ``about`` is given, log at most one warning with this ``about``, whatever the message.
        """
        key = about or message
        if key not in self._warned:
            self._warned.add(key)
            _log.warning(message)
