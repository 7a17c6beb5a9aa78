"""One writer per run on an object store: a small object, the lease, says which recording writes.

The object is named ``.lock`` and contains an identifier of the recording, called the session. The
writer refreshes the object every 10 s: it writes the object again with a new time. A writer whose
object is not refreshed is considered dead, and another writer may overwrite the object. A writer
that finds another session in the object stops uploading. So a writer that was wrongly considered
dead does no harm.

If two writers create the object at the same moment, either may win: not every store can refuse to
overwrite an object.
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

REFRESH_INTERVAL: Final = 10.0
"""Seconds between two refreshes. A writer that misses three refreshes is considered dead."""

_CHECKS: Final = 30
"""How many times the object is read, within three refresh intervals, to see if it changes."""


class Lease:
    """The right of one recording to write into a run's folder on an object store.

    A recording holds the lease from :meth:`take` to :meth:`release`, unless another recording takes
    the lease in between.

    Parameters
    ----------
    remote : RemoteLocation
        Where the run is.

    Attributes
    ----------
    remote : RemoteLocation
        Where the run is.
    session : str
        Identifier of the recording, new for each instance.
    """

    def __init__(self, remote: RemoteLocation) -> None:
        self.session = uuid.uuid4().hex
        self.remote = remote
        self._file = remote / LOCK_FILE
        self._refreshed = 0.0
        self._is_lost = False
        self._check_lock = threading.Lock()
        self._released = threading.Event()

    def take(self, *, known_dead: str | None = None) -> None:
        """Take the lease, after checking that no other writer is alive.

        The check takes half a minute if another writer did not release the lease.

        Parameters
        ----------
        known_dead : str, optional
            The session of a recording that is known to be dead, for which no check is needed.

        Raises
        ------
        UsageError
            If another writer refreshed the lease during the check, or the store cannot be written.
        """
        try:
            if self._holding_session() not in {None, self.session, known_dead}:
                self._wait_for_other_writer()
            self._refresh()
        except (OSError, pa.ArrowException) as error:
            raise UsageError(
                f"'{self.remote}' cannot be written ({reason(error)}); check the address and your "
                "credentials"
            ) from None
        # Refreshed on its own thread: an upload or download may take longer than three refreshes.
        threading.Thread(
            target=self._refresh_until_released, name="trustlens-lease", daemon=True
        ).start()

    def is_kept(self) -> bool:
        """Return whether this recording still holds the lease.

        If the last refresh is more than half of `REFRESH_INTERVAL` ago, the object is read. If it
        still names this recording, it is refreshed.

        Raises
        ------
        OSError
            If the store does not answer.
        """
        with self._check_lock:
            # Not the monotonic clock, which may stop while the machine sleeps.
            if not self._is_lost and abs(time.time() - self._refreshed) > REFRESH_INTERVAL / 2:
                # No object means lost too: another writer took the lease and released it.
                self._is_lost = self._holding_session() != self.session
                if not self._is_lost:
                    self._refresh()
            return not self._is_lost

    def release(self) -> None:
        """Release the lease. If that fails, :meth:`take` of the next writer takes half a minute."""
        self._released.set()
        with self._check_lock, suppress(OSError, pa.ArrowException):
            if self._holding_session() == self.session:
                self.remote.delete(LOCK_FILE)

    def _refresh_until_released(self) -> None:
        while not self._released.wait(REFRESH_INTERVAL):
            with suppress(OSError, pa.ArrowException):  # the store may answer the next request
                if not self.is_kept():
                    return

    def _wait_for_other_writer(self) -> None:
        _log.warning(
            "trustlens: another recording of '%s' has not closed the run; waiting up to %.0f s to "
            "see whether it is still running",
            self.remote,
            3 * REFRESH_INTERVAL,
        )
        seen, silent, failed = self._text(), 0, 0
        while silent < _CHECKS:
            began = time.time()
            time.sleep(3 * REFRESH_INTERVAL / _CHECKS)
            try:
                now = self._text()
            except (OSError, pa.ArrowException):  # a live writer could not refresh either
                silent, failed = 0, failed + 1
                if failed == _CHECKS:
                    raise
                continue
            # If more time has passed, this machine was suspended: start counting again.
            silent = silent + 1 if time.time() - began < REFRESH_INTERVAL else 0
            if now is None:  # the other writer closed the run
                return
            if now != seen:
                raise UsageError(
                    f"'{self.remote}' already holds a run that another process is recording; "
                    "close that recorder first, or record to another address"
                )

    def _holding_session(self) -> str | None:
        text = self._text()
        return None if text is None else text.partition(" ")[0]

    def _text(self) -> str | None:
        """Return the content of the lease object; None if there is no object."""
        try:
            with self.remote.filesystem.open_input_file(self._file.filesystem_path) as opened:
                return opened.read(1024).decode(errors="replace")
        except FileNotFoundError:
            return None

    def _refresh(self) -> None:
        self.remote.put(LOCK_FILE, f"{self.session} {time.time_ns()}".encode())
        self._refreshed = time.time()
