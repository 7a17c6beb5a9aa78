"""One writer a run on an object store: a small object there says whose session writes it.

An object store has no locks. Who records puts the object anew at each look, and uploads no more
once another's is there: who came last goes on, and who was held for dead does no harm.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from typing import Final

import pyarrow as pa

from trustlens.errors import UsageError
from trustlens.store.layout import LOCK_FILE
from trustlens.store.remote import RemotePlace, reason

_log: Final = logging.getLogger("trustlens")

SIGN: Final = 10.0
"""Seconds between two signs of life of a writer; after three times as many it is held for dead."""


class RemoteLock:
    """The right to write into a run's folder on an object store.

    Parameters
    ----------
    remote : RemotePlace
        The run.
    session : str
        Of the recording that is to write.
    """

    def __init__(self, remote: RemotePlace, session: str) -> None:
        self._remote = remote
        self._file = remote / LOCK_FILE
        self._session = session
        self._renewed = 0.0

    def take(self, *, of: str | None = None) -> None:
        """Take it, when it is clear that nobody else writes: that may need half a minute.

        Parameters
        ----------
        of : str, optional
            The session of a recording of which it is known that it is dead.

        Raises
        ------
        UsageError
            Another has it and lives, or it cannot be written there.
        """
        if self._holder() not in {"", self._session, of}:
            self._wait()
        try:
            self._put()
        except (OSError, pa.ArrowException) as error:
            raise UsageError(
                f"'{self._remote}' cannot be written ({reason(error)}); check the address and your "
                "credentials"
            ) from None

    def is_kept(self) -> bool:
        """Tell whether it is still ours, and give a sign of life if it is time for one."""
        if time.monotonic() - self._renewed < SIGN / 2:
            return True
        if self._holder() != self._session:  # if nobody's, another has had it
            return False
        self._put()
        return True

    def release(self) -> None:
        """Give it back; if that cannot be, who comes next has to wait."""
        with suppress(OSError, pa.ArrowException):
            self._remote.filesystem.delete_file(self._file.path)

    def _wait(self) -> None:
        end = time.monotonic() + 3 * SIGN
        _log.warning(
            "trustlens: '%s' was being recorded by a process that did not close it; waiting for "
            "%.0f s to see whether it lives",
            self._remote,
            3 * SIGN,
        )
        seen = self._text()
        while time.monotonic() < end:
            time.sleep(SIGN / 10)
            if self._text() not in {seen, ""}:
                raise UsageError(
                    f"'{self._remote}' already holds a run that another process is recording; "
                    "close that recorder first, or record to another address"
                )

    def _holder(self) -> str:
        return self._text().partition(" ")[0]

    def _text(self) -> str:
        try:
            with self._remote.filesystem.open_input_file(self._file.path) as opened:
                return opened.read(1024).decode(errors="replace")
        except FileNotFoundError:
            return ""

    def _put(self) -> None:
        self._renewed = time.monotonic()
        self._remote.put(LOCK_FILE, f"{self._session} {time.time_ns()}".encode())
