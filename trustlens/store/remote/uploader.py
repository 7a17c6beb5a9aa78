"""A run on an object store: written on this machine's disk, and copied there file by file.

Each object is put whole and under its own name; none is renamed. What is not there yet stays on the
disk, in a folder of the user's cache (the spool), so that a network that is gone loses nothing.
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
from trustlens.store.location import entries, exists
from trustlens.store.locking import RunLock
from trustlens.store.remote.lease import RemoteLock
from trustlens.store.remote.staging import (
    UNKNOWN,
    Local,
    files_of,
    folders_of,
    kept_if_well,
    note_uploaded,
    session_in,
    spool_of,
    uploaded,
)
from trustlens.store.remote_location import RemotePlace, reason
from trustlens.store.repair import Left, repair
from trustlens.store.run_info import read_info

_log: Final = logging.getLogger("trustlens")

INTERVAL: Final = 10.0
"""Seconds between two looks at what is new; what a reader of the store sees is as old at most."""

PATIENCE: Final = 60.0
"""Seconds without progress after which a close gives up: what is left stays in the spool."""


class _TakenOverError(Exception):
    """Another recording writes there now."""


class Mirror:
    """Copies a run from its spool to an object store, on a thread of its own, until it is closed.

    Parameters
    ----------
    spool : Path
        The run on this machine.
    lock : RemoteLock
        The right to write where it is to be.
    """

    def __init__(self, spool: Path, lock: RemoteLock) -> None:
        self._spool = spool
        self._remote = lock.remote
        self._lock = lock
        self._interval = INTERVAL
        self._patience = PATIENCE
        # What lies there, as it was here; None: it is not known what, or not even whether.
        self._there: dict[str, Local | None] | None = None
        self._warned = self._taken_over = False
        self._progress = time.monotonic()
        self._rounds = 0
        self._wake = threading.Condition()
        self._asked = self._over = False
        self._whole = False
        self._held: RunLock | None = None  # of the spool, from the end of the recording on
        self._thread = threading.Thread(target=self._work, name="trustlens-mirror", daemon=True)
        self._thread.start()

    def flush(self) -> None:
        """Wait until what is in the spool now is there, as long as an interval at the most."""
        with self._wake:
            target = self._rounds + 2  # one may be on its way
            end = time.monotonic() + self._interval
            while self._rounds < target and time.monotonic() < end:
                self._asked = True
                self._wake.notify_all()
                self._wake.wait(0.05)

    def close(self) -> None:
        """Wait until all is there and take the spool away; if it cannot be, say where it is."""
        if not self.finish() and not self._taken_over:
            _log.warning("trustlens: %s", self.what_is_left)

    def finish(self) -> bool:
        """Wait until all is there and take the spool away; return whether that could be."""
        with suppress(UsageError, OSError):  # that nobody repairs or resumes it meanwhile
            self._held = RunLock(self._spool)
        with self._wake:
            self._over = True
            self._progress = time.monotonic()
            self._wake.notify_all()
        self._thread.join()
        return self._whole

    @property
    def what_is_left(self) -> str:
        """Where the run is if not all could be uploaded, and what to do."""
        return (
            f"not all of '{self._remote}' could be uploaded; what it lacks is in '{self._spool}'. "
            "A recording that resumes it uploads it, or: trustlens repair "
            f"'{self._remote.whole_address}'"
        )

    def _work(self) -> None:
        self._run()
        if self._held is not None:
            if self._whole:
                # That first: should this be broken off, nobody takes the rest for the run.
                with suppress(OSError):
                    (self._spool / RUN_FILE).unlink()
                shutil.rmtree(self._spool, ignore_errors=True)
            self._held.release()
        self._lock.release()

    def _run(self) -> None:
        """Upload until it is closed and all is there, or cannot be."""
        while True:
            with self._wake:
                self._asked, over = False, self._over
            if over:
                self._there = None  # it is looked at again: nothing of another's is to stay
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
        """Copy what is new; return whether all is there."""
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
                self._spool,
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
                    self._spool,
                )
            return False
        return True

    def _copy(self) -> None:
        self._check_right()
        if self._there is None:
            self._there = dict(self._known())
            note_uploaded(self._spool, self._there)
        here = files_of(self._spool)
        sealed = (name for name, local in self._there.items() if local and name.startswith(TABLES))
        if not {RUN_FILE, *sealed}.issubset(here):  # somebody cleaned the cache
            raise FileNotFoundError(f"files are gone from '{self._spool}'")
        before = dict(self._there)
        try:
            self._make_same(self._there, here)
        finally:
            if self._there != before:
                note_uploaded(self._spool, self._there)

    def _make_same(self, there: dict[str, Local | None], here: dict[str, Local]) -> None:
        # What was made of rows that are replaced goes first: nobody is to see it beside the new.
        changed = [name for name in there if there[name] != here.get(name)]
        replaced = [name for name in changed if name.startswith("layers/")]
        if replaced or None in there.values():
            self._delete(there, [name for name in changed if name.startswith(OVERVIEW)])
        # What is sealed before its journal: a reader that sees a journal gone then sees its rows.
        # What lost rows before what has these rows anew, whose number is higher. What is no longer
        # here goes last, when all that has its rows is there.
        for name in sorted(here, key=_order):
            if there.get(name) != here[name]:
                self._check_right()
                try:
                    data = (self._spool / name).read_bytes()
                except FileNotFoundError:  # sealed meanwhile: it comes in the next round
                    continue
                self._put(name, data)
                there[name] = here[name]
                self._progress = time.monotonic()
        gone = [name for name in there if name not in here]
        self._delete(there, [name for name in gone if _may_go(name, there[name], here)])

    def _check_right(self) -> None:
        if not self._lock.is_kept():
            raise _TakenOverError

    def _known(self) -> Iterator[tuple[str, Local | None]]:
        """Yield what lies there and need not be put again, and what perhaps is not to stay."""
        before = uploaded(self._spool)
        if before is None and not exists(self._remote / RUN_FILE):
            return  # nobody began to upload it
        # Without a note of ours nothing is known to be another's.
        unknown = None if before else UNKNOWN
        for folder in folders_of(self._remote):
            for entry in entries(self._remote / folder if folder else self._remote):
                name = f"{folder}/{entry.name}" if folder else entry.name
                local = before.get(name) if before else None
                if local is not None and local.size == entry.size:
                    yield name, local
                elif folder.startswith((JOURNAL, OVERVIEW, *TABLES)) and entry.is_plain:
                    yield name, unknown

    def _delete(self, there: dict[str, Local | None], names: list[str]) -> None:
        if names:
            self._check_right()
        for name in names:
            with suppress(FileNotFoundError):
                self._remote.filesystem.delete_file((self._remote / name).path)
            del there[name]

    def _put(self, name: str, data: bytes) -> None:
        self._remote.put(name, data)


def _may_go(name: str, local: Local | None, here: Container[str]) -> bool:
    """Tell whether what is on the store, and no longer here, is not to stay."""
    if local is None or name.startswith(OVERVIEW):
        return True  # another's, or made anew
    if not name.startswith(JOURNAL):
        return False  # what a rewind replaced is kept
    sealed = name.removeprefix(f"{JOURNAL}/").replace("-", "/").replace(".arrow", ".parquet")
    return sealed in here


def _order(name: str) -> tuple[bool, bool, bool, str]:
    """Sort files as they are uploaded; the steps' journal is to be no newer than the layers'."""
    journal = name.startswith(JOURNAL)
    return name == RUN_FILE, journal, journal and not name.startswith(f"{JOURNAL}/steps"), name


def repair_spool(remote: RemotePlace) -> list[Left] | None:
    """Seal what a dead process left in its spool, and upload what is not on the object store yet.

    Returns
    -------
    list of Left or None
        What was sealed, one a table; None if there was nothing to do.

    Raises
    ------
    UsageError
        What is left of it is not on this machine, is of an older state of the run, or is of one on
        another server; or it is being recorded.
    """
    spool, there = spool_of(remote), exists(remote / RUN_FILE)
    if not (spool / RUN_FILE).exists():
        info = read_info(remote)
        if info.closed is not None or info.recording.repaired is not None:
            return None
        raise UsageError(
            f"nothing of '{remote}' is left on this machine; if its recording broke off, repair it "
            "on the machine that recorded it"
        )
    session = session_in(spool)
    if there and session_in(remote) != session:
        raise UsageError(
            f"'{remote}' was gone on with elsewhere; what this machine had of it and did not "
            f"upload is in '{spool}', a run of its own: remove it if you do not want it"
        )
    if not there and RUN_FILE in (uploaded(spool) or {}):
        raise UsageError(
            f"'{remote}' holds no run, though one was uploaded to it: check the address and its "
            f"server; what was recorded is in '{spool}'"
        )
    RunLock(spool).release()  # refused while it is being recorded
    lock = RemoteLock(remote)
    lock.take(known_dead=session)
    with kept_if_well(lock):
        if exists(remote / RUN_FILE) != there or (there and session_in(remote) != session):
            raise UsageError(f"'{remote}' was gone on with meanwhile; try again")
        found = repair(spool)
    mirror = Mirror(spool, lock)
    if not mirror.finish():
        raise UsageError(mirror.what_is_left)
    return found
