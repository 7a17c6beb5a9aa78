"""Uploading a run from the staging folder to an object store, file by file, during the recording.

Each object is written as a whole under its final name. Objects are never renamed. Files stay in the
staging folder until the whole run is uploaded, so that a failure of the network loses nothing.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Container, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from trustlens.errors import UsageError
from trustlens.schema import TABLES
from trustlens.store.layout import JOURNAL, OVERVIEW, RUN_FILE
from trustlens.store.locking import RunLock
from trustlens.store.remote.lease import Lease
from trustlens.store.remote.staging import (
    UNKNOWN,
    Version,
    files_of,
    folders_of,
    note_uploaded,
    released_on_error,
    uploaded,
)
from trustlens.store.remote.status import session_in, staging_folder
from trustlens.store.remote_location import RemoteLocation, reason
from trustlens.store.repair import repair
from trustlens.store.run_info import read_info
from trustlens.store.segments.leftovers import Leftover

_log: Final = logging.getLogger("trustlens")

INTERVAL: Final = 10.0
"""Seconds from one upload to the next. Readers of the store see new rows with this delay."""

FLUSH_TIMEOUT: Final = 10.0
"""Seconds after which :meth:`Uploader.flush` stops waiting."""

PATIENCE: Final = 60.0
"""Seconds without any uploaded file after which :meth:`Uploader.close` gives up. The files that are
not uploaded stay in the staging folder."""


class _TakenOverError(Exception):
    """Raised when another recording has taken the lease."""


class Uploader:
    """Uploads new and changed files of a run to an object store, while the run is recorded.

    An instance starts a thread that uploads at intervals, until :meth:`close` or :meth:`finish`.

    Parameters
    ----------
    staging : Path
        The staging folder, where the run is written.
    lease : Lease
        The lease of the run on the store, which this recording holds. It is released at the end.
    """

    def __init__(self, staging: Path, lease: Lease) -> None:
        self._staging = staging
        self._remote = lease.remote
        self._lease = lease
        self._interval = INTERVAL
        self._patience = PATIENCE
        # The files on the store, each with the version that was uploaded from the staging folder.
        # The version is None for a file of another recording. The whole attribute is None while the
        # store has to be listed.
        self._on_store: dict[str, Version | None] | None = None
        self._warned = self._taken_over = False
        self._progress = time.monotonic()
        self._rounds = 0
        self._wake = threading.Condition()
        self._flush_requested = self._is_closing = False
        self._is_complete = False
        # The lock of the staging folder, which this object holds after the recording has ended.
        self._staging_lock: RunLock | None = None
        self._thread = threading.Thread(target=self._work, name="trustlens-uploader", daemon=True)
        self._thread.start()

    def flush(self) -> None:
        """Wait until all files that exist now are uploaded, but at most `FLUSH_TIMEOUT` seconds."""
        with self._wake:
            target = self._rounds + 2  # the round under way may have begun before this call
            end = time.monotonic() + FLUSH_TIMEOUT
            while self._rounds < target and time.monotonic() < end:
                self._flush_requested = True
                self._wake.notify_all()
                self._wake.wait(0.05)

    def close(self) -> None:
        """Upload the remaining files and remove the staging folder; log a warning if that fails."""
        if not self.finish() and not self._taken_over:
            _log.warning("trustlens: %s", self.what_is_left)

    def finish(self) -> bool:
        """Upload the remaining files, remove the staging folder; return whether this succeeded."""
        with suppress(UsageError, OSError):  # keeps other processes from writing the run
            self._staging_lock = RunLock(self._staging)
        with self._wake:
            self._is_closing = True
            self._progress = time.monotonic()
            self._wake.notify_all()
        self._thread.join()
        return self._is_complete

    @property
    def what_is_left(self) -> str:
        """A message that tells the user where files are that were not uploaded, and what to do."""
        return (
            f"not all of '{self._remote}' could be uploaded; the rest is in '{self._staging}'. To "
            "upload it, resume the recording, or run: trustlens repair "
            f"'{self._remote.whole_address}'"
        )

    def _work(self) -> None:
        self._run()
        if self._staging_lock is not None:
            if self._is_complete:
                # run.json first: a folder without run.json, even with other files, is no run.
                with suppress(OSError):
                    (self._staging / RUN_FILE).unlink()
                shutil.rmtree(self._staging, ignore_errors=True)
            self._staging_lock.release()
        self._lease.release()

    def _run(self) -> None:
        """Upload until the run is closed and all files are on the store, or until giving up."""
        while True:
            with self._wake:
                self._flush_requested, closing = False, self._is_closing
            if closing:
                self._on_store = None  # list again: another recording may have left files
            complete = self._round()
            with self._wake:
                self._rounds += 1
                self._wake.notify_all()
                if closing:
                    self._is_complete = complete
                    may_retry = time.monotonic() - self._progress <= self._patience
                    if complete or self._taken_over or not may_retry:
                        return
                    self._wake.wait(min(1.0, self._interval))
                    continue
                self._wake.wait_for(
                    lambda: self._flush_requested or self._is_closing, self._interval
                )

    def _round(self) -> bool:
        """Upload new and changed files once; return whether the store has all files now."""
        if self._taken_over:
            return False
        try:
            self._upload_changes()
        except _TakenOverError:
            self._taken_over = True
            _log.warning(
                "trustlens: another recording has taken over '%s' (or its '.lock' was removed); "
                "files of this recording that are not uploaded stay in '%s'",
                self._remote,
                self._staging,
            )
            return False
        except Exception as error:  # noqa: BLE001 — the network may fail in any way
            if not self._warned:
                self._warned = True
                _log.warning(
                    "trustlens: '%s' cannot be written (%s); the files in '%s' are uploaded when "
                    "the store can be written again",
                    self._remote,
                    reason(error),
                    self._staging,
                )
            return False
        return True

    def _upload_changes(self) -> None:
        self._check_lease()
        if self._on_store is None:
            self._on_store = dict(self._list_remote())
            note_uploaded(self._staging, self._on_store)
        local = files_of(self._staging)
        known = (name for name, version in self._on_store.items() if version is not None)
        sealed = (name for name in known if name.startswith(TABLES))
        if not {RUN_FILE, *sealed}.issubset(local):  # the user's cache folder was cleaned
            raise FileNotFoundError(f"files were removed from '{self._staging}'")
        listed = dict(self._on_store)
        try:
            self._synchronize(self._on_store, local)
        finally:
            if self._on_store != listed:
                note_uploaded(self._staging, self._on_store)

    def _synchronize(self, on_store: dict[str, Version | None], local: dict[str, Version]) -> None:
        # In this order, a reader of the store never sees a row twice, and no journal is deleted
        # before the segment with the journal's rows is uploaded.
        # 1. Delete overview files that were made from segments that will be replaced.
        changed = [name for name in on_store if on_store[name] != local.get(name)]
        replaced = [name for name in changed if name.startswith("layers/")]
        if replaced or None in on_store.values():
            self._delete(on_store, [name for name in changed if name.startswith(OVERVIEW)])
        # 2. Upload segments, then journals, then run.json. Segments are in ascending order: after a
        #    rollback, segments that lost rows come before segments with the rows recorded again.
        for name in sorted(local, key=_order):
            if on_store.get(name) != local[name]:
                self._check_lease()
                try:
                    data = (self._staging / name).read_bytes()
                except FileNotFoundError:  # a journal sealed meanwhile: its segment follows
                    continue
                self._remote.put(name, data)
                on_store[name] = local[name]
                self._progress = time.monotonic()
        # 3. Delete files that no longer exist in the staging folder.
        removed = [name for name in on_store if name not in local]
        self._delete(
            on_store, [name for name in removed if _should_delete(name, on_store[name], local)]
        )

    def _check_lease(self) -> None:
        if not self._lease.is_kept():
            raise _TakenOverError

    def _list_remote(self) -> Iterator[tuple[str, Version | None]]:
        """Yield files on the store that need no upload, and files that may have to be deleted."""
        listed = uploaded(self._staging)
        if listed is None and not (self._remote / RUN_FILE).exists():
            return  # nothing is uploaded yet
        # Without a list of uploaded files, files of another recording cannot be recognized.
        unknown = None if listed else UNKNOWN
        for folder in folders_of(self._remote):
            for entry in (self._remote / folder if folder else self._remote).entries():
                name = f"{folder}/{entry.name}" if folder else entry.name
                version = listed.get(name) if listed else None
                if version is not None and version.size == entry.size:
                    yield name, version
                elif folder.startswith((JOURNAL, OVERVIEW, *TABLES)) and entry.is_plain:
                    yield name, unknown

    def _delete(self, on_store: dict[str, Version | None], names: list[str]) -> None:
        if names:
            self._check_lease()
        for name in names:
            with suppress(FileNotFoundError):
                self._remote.delete(name)
            del on_store[name]


def _should_delete(name: str, version: Version | None, local: Container[str]) -> bool:
    """Return whether to delete a file of the store that is not in the staging folder."""
    if version is None or name.startswith(OVERVIEW):
        return True  # of another recording, or can be built again
    if not name.startswith(JOURNAL):
        return False  # segments, and copies from before a rollback, are kept
    sealed = name.removeprefix(f"{JOURNAL}/").replace("-", "/").replace(".arrow", ".parquet")
    return sealed in local


def _order(name: str) -> tuple[bool, bool, bool, str]:
    """Return the key by which files are sorted for the upload.

    Segments and overview files come first, then the journals of ``steps``, the other journals, and
    ``run.json``.
    """
    journal = name.startswith(JOURNAL)
    return name == RUN_FILE, journal, journal and not name.startswith(f"{JOURNAL}/steps"), name


def repair_remote(remote: RemoteLocation) -> list[Leftover] | None:
    """Repair an interrupted run in the staging folder, and upload the files that are not uploaded.

    Returns
    -------
    list of Leftover or None
        What :func:`repair` returned. None if there is nothing to do: no files are left on this
        machine, and the run on the store was closed or repaired.

    Raises
    ------
    UsageError
        If this machine has no files of the run, or files of an older state of the run; if there is
        no run at the address any more; if the run is being recorded; or if the upload fails.
    RunError
        If there is no run on this machine or on the store, or its ``run.json`` cannot be read.
    """
    staging, on_store = staging_folder(remote), (remote / RUN_FILE).exists()
    if not (staging / RUN_FILE).exists():
        info = read_info(remote)
        if info.closed is not None or info.recording.repaired is not None:
            return None
        raise UsageError(
            f"this machine has no files of '{remote}' left to upload; if its recording was "
            "interrupted, repair it on the machine that recorded it"
        )
    session = session_in(staging)
    if on_store and session_in(remote) != session:
        raise UsageError(
            f"'{remote}' was resumed on another machine; rows that this machine did not upload are "
            f"in '{staging}', which can be read as a run; remove it if you do not need them"
        )
    if not on_store and RUN_FILE in (uploaded(staging) or {}):
        raise UsageError(
            f"'{remote}' holds no run, although one was uploaded to it: check the address and its "
            f"server; the recorded run is in '{staging}'"
        )
    RunLock(staging).release()  # raises UsageError while the run is being recorded
    lease = Lease(remote)
    lease.take(known_dead=session)
    with released_on_error(lease):
        if (remote / RUN_FILE).exists() != on_store or (on_store and session_in(remote) != session):
            raise UsageError(f"'{remote}' was just resumed by another process; try again")
        found = repair(staging)
    uploader = Uploader(staging, lease)
    if not uploader.finish():
        raise UsageError(uploader.what_is_left)
    return found
