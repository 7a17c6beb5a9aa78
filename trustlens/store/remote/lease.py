"""One writer per run on an object store: a small object there names the session that writes.

The writer refreshes the lease object every 10 s and stops uploading when it finds another writer's
lease. So the writer that came last continues, and one that was wrongly taken for dead does no harm.
If two writers create the object at the same moment, which one wins is undefined: not every store
has conditional writes.
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
from trustlens.store.remote_location import RemoteLocation, reason

_log: Final = logging.getLogger("trustlens")

SIGN: Final = 10.0
"""Seconds between two refreshes; a writer that misses three of them is taken for dead."""

_LOOKS: Final = 30
"""How often the object is read during that time."""


class Lease:
    """The right to write into a run's folder on an object store, once :meth:`take` returned.

    Parameters
    ----------
    remote : RemoteLocation
        The run.

    Attributes
    ----------
    remote : RemoteLocation
        The run.
    session : str
        Identifier of the recording that holds it.
    """

    def __init__(self, remote: RemoteLocation) -> None:
        self.session = uuid.uuid4().hex
        self.remote = remote
        self._file = remote / LOCK_FILE
        self._signed = 0.0
        self._is_lost = False
        self._asking = threading.Lock()
        self._over = threading.Event()

    def take(self, *, known_dead: str | None = None) -> None:
        """Take the lease when it is clear that nobody else writes; that may take half a minute.

        Parameters
        ----------
        known_dead : str, optional
            The session of a recording that is known to be dead.

        Raises
        ------
        UsageError
            Another writer holds it, or the object cannot be written.
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
        # On its own thread: an upload or a download may take longer than others wait.
        threading.Thread(target=self._live, name="trustlens-lease", daemon=True).start()

    def is_kept(self) -> bool:
        """Return whether it is still ours; reads the object if the last refresh is not recent.

        Raises
        ------
        OSError
            The store does not answer.
        """
        with self._asking:
            # Not the monotonic clock, which may stand still while a machine sleeps.
            if not self._is_lost and abs(time.time() - self._signed) > SIGN / 2:
                # If the object is gone, another writer has had it.
                self._is_lost = self._holder() != self.session
                if not self._is_lost:
                    self._sign()
            return not self._is_lost

    def release(self) -> None:
        """Give it back. If that fails, the next writer has to wait."""
        self._over.set()
        with self._asking, suppress(OSError, pa.ArrowException):
            if self._holder() == self.session:
                self.remote.delete(LOCK_FILE)

    def _live(self) -> None:
        while not self._over.wait(SIGN):
            with suppress(OSError, pa.ArrowException):  # the store may answer the next time
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
            except (OSError, pa.ArrowException):  # a live writer could not refresh it either
                silent, failed = 0, failed + 1
                if failed == _LOOKS:
                    raise
                continue
            silent = silent + 1 if time.time() - began < SIGN else 0  # else this machine slept
            if now is None:  # it has closed the run
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
        """Return the object's content; None if there is none."""
        try:
            with self.remote.filesystem.open_input_file(self._file.filesystem_path) as opened:
                return opened.read(1024).decode(errors="replace")
        except FileNotFoundError:
            return None

    def _sign(self) -> None:
        self.remote.put(LOCK_FILE, f"{self.session} {time.time_ns()}".encode())
        self._signed = time.time()
