"""One writer a run on an object store: a small object there says whose session writes it.

An object store has no locks. Who records puts the object anew every few seconds, and uploads no
more once another's is there: who came last goes on, and who was held for dead does no harm. Of two
that put it within the same moment either may be the one that goes on, for want of a conditional
write that all stores have.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from contextlib import suppress
from typing import Final

import pyarrow as pa

from trustlens.errors import UsageError
from trustlens.store.layout import LOCK_FILE
from trustlens.store.remote_location import RemotePlace, reason

_log: Final = logging.getLogger("trustlens")

SIGN: Final = 10.0
"""Seconds between two signs of life of a writer; after three times as many it is held for dead."""

_LOOKS: Final = 30
"""How often it is looked for a sign, in that time."""


class RemoteLock:
    """The right to write into a run's folder on an object store, once it is taken.

    Parameters
    ----------
    remote : RemotePlace
        The run.
    session : str, optional
        Of the recording that is to write; a new one if not given.

    Attributes
    ----------
    remote : RemotePlace
        The run.
    session : str
        Whose it is.
    """

    def __init__(self, remote: RemotePlace, session: str | None = None) -> None:
        self.session = uuid.uuid4().hex if session is None else session
        self.remote = remote
        self._file = remote / LOCK_FILE
        self._signed = 0.0
        self._is_lost = False
        self._asking = threading.Lock()
        self._over = threading.Event()

    def take(self, *, known_dead: str | None = None) -> None:
        """Take it, when it is clear that nobody else writes: that may need half a minute.

        Parameters
        ----------
        known_dead : str, optional
            The session of a recording of which it is known that it is dead.

        Raises
        ------
        UsageError
            Another has it and lives, or it cannot be written there.
        """
        try:
            if self._holder() not in {None, self.session, known_dead}:
                self._wait()
            self._sign()
        except (OSError, pa.ArrowException) as error:
            raise UsageError(
                f"'{self.remote}' cannot be written ({reason(error)}); check the address and your "
                "credentials"
            ) from None
        # Of its own: an upload or a download may take longer than others wait for a sign.
        threading.Thread(target=self._live, name="trustlens-lock", daemon=True).start()

    def is_kept(self) -> bool:
        """Tell whether it is still ours; asks where the last sign is not of this moment.

        Raises
        ------
        OSError
            The store does not answer.
        """
        with self._asking:
            # Not the monotonic clock, which may stand still while a machine sleeps.
            if not self._is_lost and abs(time.time() - self._signed) > SIGN / 2:
                # If it is nobody's, another has had it.
                self._is_lost = self._holder() != self.session
                if not self._is_lost:
                    self._sign()
            return not self._is_lost

    def release(self) -> None:
        """Give it back; if that cannot be, who comes next has to wait."""
        self._over.set()
        with self._asking, suppress(OSError, pa.ArrowException):
            if self._holder() == self.session:
                self.remote.filesystem.delete_file(self._file.path)

    def _live(self) -> None:
        while not self._over.wait(SIGN):
            with suppress(OSError, pa.ArrowException):  # it may answer the next time
                if not self.is_kept():
                    return

    def _wait(self) -> None:
        _log.warning(
            "trustlens: another recording of '%s' did not close it; waiting for up to %.0f s to "
            "see whether it lives",
            self.remote,
            3 * SIGN,
        )
        seen, silent, failed = self._text(), 0, 0
        while silent < _LOOKS:
            began = time.time()
            time.sleep(3 * SIGN / _LOOKS)
            try:
                now = self._text()
            except (OSError, pa.ArrowException):  # who lives could not give a sign either
                silent, failed = 0, failed + 1
                if failed == _LOOKS:
                    raise
                continue
            silent = silent + 1 if time.time() - began < SIGN else 0  # else this machine slept
            if now is None:  # it closed the run meanwhile
                return
            if now != seen:
                raise UsageError(
                    f"'{self.remote}' already holds a run that another process is recording; "
                    "close that recorder first, or record to another address"
                )

    def _holder(self) -> str | None:
        text = self._text()
        return None if text is None else text.partition(" ")[0]

    def _text(self) -> str | None:
        """Return what it says; None if there is none, and little if it is being written."""
        try:
            with self.remote.filesystem.open_input_file(self._file.path) as opened:
                return opened.read(1024).decode(errors="replace")
        except FileNotFoundError:
            return None

    def _sign(self) -> None:
        self.remote.put(LOCK_FILE, f"{self.session} {time.time_ns()}".encode())
        self._signed = time.time()
