"""Uploading a run from its staging folder to an object store, file by file, while it is recorded.

Each object is written whole under its final name; none is renamed. Files that are not uploaded yet
stay in the staging folder, so that a network failure loses nothing.
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
"""Seconds between two uploads: readers of the store are behind by that much at most."""

PATIENCE: Final = 60.0
"""Seconds without progress after which ``close`` gives up; the rest stays in the staging folder."""


class _TakenOverError(Exception):
    """Another recording has the lease now."""


class Uploader:
    """Uploads a run from its staging folder to an object store, on its own thread, until closed.

    Parameters
    ----------
    staging : Path
        The run on this machine.
    lease : Lease
        The right to write to the store.
    """

    def __init__(self, staging: Path, lease: Lease) -> None:
        self._staging = staging
        self._remote = lease.remote
        self._lease = lease
        self._interval = INTERVAL
        self._patience = PATIENCE
        # The files on the store, with their versions in the staging folder; a version of None if
        # it is not known what the file holds. None as a whole: the store was not listed yet.
        self._there: dict[str, Version | None] | None = None
        self._warned = self._taken_over = False
        self._progress = time.monotonic()
        self._rounds = 0
        self._wake = threading.Condition()
        self._asked = self._over = False
        self._whole = False
        self._held: RunLock | None = None  # of the staging folder, once the recording has ended
        self._thread = threading.Thread(target=self._work, name="trustlens-uploader", daemon=True)
        self._thread.start()

    def flush(self) -> None:
        """Wait until all present files are uploaded, for one interval at most."""
        with self._wake:
            target = self._rounds + 2  # one may be under way
            end = time.monotonic() + self._interval
            while self._rounds < target and time.monotonic() < end:
                self._asked = True
                self._wake.notify_all()
                self._wake.wait(0.05)

    def close(self) -> None:
        """Upload the rest and remove the staging folder; warn if that is not possible."""
        if not self.finish() and not self._taken_over:
            _log.warning("trustlens: %s", self.what_is_left)

    def finish(self) -> bool:
        """Upload the rest and remove the staging folder; return whether that succeeded."""
        with suppress(UsageError, OSError):  # so that nobody repairs or resumes it meanwhile
            self._held = RunLock(self._staging)
        with self._wake:
            self._over = True
            self._progress = time.monotonic()
            self._wake.notify_all()
        self._thread.join()
        return self._whole

    @property
    def what_is_left(self) -> str:
        """A message: where the rest of the run is if it could not be uploaded, and what to do."""
        return (
            f"not all of '{self._remote}' could be uploaded; what it lacks is in "
            f"'{self._staging}'. A recording that resumes it uploads it, or: trustlens repair "
            f"'{self._remote.whole_address}'"
        )

    def _work(self) -> None:
        self._run()
        if self._held is not None:
            if self._whole:
                # First, so that nobody takes an incomplete folder for the run.
                with suppress(OSError):
                    (self._staging / RUN_FILE).unlink()
                shutil.rmtree(self._staging, ignore_errors=True)
            self._held.release()
        self._lease.release()

    def _run(self) -> None:
        """Upload until the run is closed and complete on the store, or that is not possible."""
        while True:
            with self._wake:
                self._asked, over = False, self._over
            if over:
                self._there = None  # list it again, to remove files of another recording
            whole = self._round()
            with self._wake:
                self._rounds += 1
                self._wake.notify_all()
                if over:
                    self._whole = whole
                    patient = time.monotonic() - self._progress <= self._patience
                    if whole or self._taken_over or not patient:
                        return
                    self._wake.wait(min(1.0, self._interval))
                    continue
                self._wake.wait_for(lambda: self._asked or self._over, self._interval)

    def _round(self) -> bool:
        """Upload what is new; return whether the store has everything."""
        if self._taken_over:
            return False
        try:
            self._copy()
        except _TakenOverError:
            self._taken_over = True
            _log.warning(
                "trustlens: another recording goes on with '%s' (or its '.lock' was removed); what "
                "this one has that is not uploaded stays in '%s'",
                self._remote,
                self._staging,
            )
            return False
        except Exception as error:  # noqa: BLE001 — the network may fail in any way
            if not self._warned:
                self._warned = True
                _log.warning(
                    "trustlens: '%s' cannot be written (%s); what is in '%s' is uploaded when it "
                    "can",
                    self._remote,
                    reason(error),
                    self._staging,
                )
            return False
        return True

    def _copy(self) -> None:
        self._check_right()
        if self._there is None:
            self._there = dict(self._known())
            note_uploaded(self._staging, self._there)
        here = files_of(self._staging)
        known = (name for name, version in self._there.items() if version is not None)
        sealed = (name for name in known if name.startswith(TABLES))
        if not {RUN_FILE, *sealed}.issubset(here):  # somebody cleaned the cache
            raise FileNotFoundError(f"files are gone from '{self._staging}'")
        before = dict(self._there)
        try:
            self._make_same(self._there, here)
        finally:
            if self._there != before:
                note_uploaded(self._staging, self._there)

    def _make_same(self, there: dict[str, Version | None], here: dict[str, Version]) -> None:
        # The order is such that a reader of the store never sees a row twice, nor a journal gone
        # before its segment is there.
        # 1. Delete overview files that were made from segments which are replaced.
        changed = [name for name in there if there[name] != here.get(name)]
        replaced = [name for name in changed if name.startswith("layers/")]
        if replaced or None in there.values():
            self._delete(there, [name for name in changed if name.startswith(OVERVIEW)])
        # 2. Upload segments by ascending number (those that a rollback cut before those that have
        #    the rows again), then journals, then run.json.
        for name in sorted(here, key=_order):
            if there.get(name) != here[name]:
                self._check_right()
                try:
                    data = (self._staging / name).read_bytes()
                except FileNotFoundError:  # sealed meanwhile: uploaded in the next round
                    continue
                self._remote.put(name, data)
                there[name] = here[name]
                self._progress = time.monotonic()
        # 3. Delete files that no longer exist locally.
        gone = [name for name in there if name not in here]
        self._delete(there, [name for name in gone if _may_go(name, there[name], here)])

    def _check_right(self) -> None:
        if not self._lease.is_kept():
            raise _TakenOverError

    def _known(self) -> Iterator[tuple[str, Version | None]]:
        """Yield files of the store: those that need no upload, and those that may have to go."""
        before = uploaded(self._staging)
        if before is None and not (self._remote / RUN_FILE).exists():
            return  # nothing was uploaded yet
        # Without a note it is not known which files are another recording's.
        unknown = None if before else UNKNOWN
        for folder in folders_of(self._remote):
            for entry in (self._remote / folder if folder else self._remote).entries():
                name = f"{folder}/{entry.name}" if folder else entry.name
                version = before.get(name) if before else None
                if version is not None and version.size == entry.size:
                    yield name, version
                elif folder.startswith((JOURNAL, OVERVIEW, *TABLES)) and entry.is_plain:
                    yield name, unknown

    def _delete(self, there: dict[str, Version | None], names: list[str]) -> None:
        if names:
            self._check_right()
        for name in names:
            with suppress(FileNotFoundError):
                self._remote.delete(name)
            del there[name]


def _may_go(name: str, version: Version | None, here: Container[str]) -> bool:
    """Return whether a file that is on the store, and no longer here, is to be deleted."""
    if version is None or name.startswith(OVERVIEW):
        return True  # another recording's, or made again
    if not name.startswith(JOURNAL):
        return False  # copies from before a rollback are kept
    sealed = name.removeprefix(f"{JOURNAL}/").replace("-", "/").replace(".arrow", ".parquet")
    return sealed in here


def _order(name: str) -> tuple[bool, bool, bool, str]:
    """Return a key that sorts files for upload; the journal of steps comes before the others."""
    journal = name.startswith(JOURNAL)
    return name == RUN_FILE, journal, journal and not name.startswith(f"{JOURNAL}/steps"), name


def repair_remote(remote: RemoteLocation) -> list[Leftover] | None:
    """Recover an interrupted run in its staging folder, and upload what is missing on the store.

    Returns
    -------
    list of Leftover or None
        What was sealed, by table; None if there was nothing to do.

    Raises
    ------
    UsageError
        The rest of the run is not on this machine, is of an older state of the run, or of a run on
        another server; or the run is being recorded.
    """
    staging, there = staging_folder(remote), (remote / RUN_FILE).exists()
    if not (staging / RUN_FILE).exists():
        info = read_info(remote)
        if info.closed is not None or info.recording.repaired is not None:
            return None
        raise UsageError(
            f"nothing of '{remote}' is left on this machine; if its recording broke off, repair it "
            "on the machine that recorded it"
        )
    session = session_in(staging)
    if there and session_in(remote) != session:
        raise UsageError(
            f"'{remote}' was gone on with elsewhere; what this machine had of it and did not "
            f"upload is in '{staging}', a run of its own: remove it if you do not want it"
        )
    if not there and RUN_FILE in (uploaded(staging) or {}):
        raise UsageError(
            f"'{remote}' holds no run, though one was uploaded to it: check the address and its "
            f"server; what was recorded is in '{staging}'"
        )
    RunLock(staging).release()  # refused while it is being recorded
    lease = Lease(remote)
    lease.take(known_dead=session)
    with released_on_error(lease):
        if (remote / RUN_FILE).exists() != there or (there and session_in(remote) != session):
            raise UsageError(f"'{remote}' was gone on with meanwhile; try again")
        found = repair(staging)
    uploader = Uploader(staging, lease)
    if not uploader.finish():
        raise UsageError(uploader.what_is_left)
    return found
