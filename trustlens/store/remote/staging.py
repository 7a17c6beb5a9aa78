"""Where a run that is to lie on an object store is written: a folder of the user's cache.

What is not uploaded yet stays there, so that a network that is gone loses nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Final

from trustlens.cache_folder import cache_folder
from trustlens.errors import RunError, UsageError
from trustlens.schema import TABLES
from trustlens.store.atomic_write import atomic_write
from trustlens.store.layout import JOURNAL, OVERVIEW, REPLACED, RUN_FILE
from trustlens.store.location import Place, entries, exists, open_input, reading
from trustlens.store.locking import is_held
from trustlens.store.remote.lease import RemoteLock
from trustlens.store.remote_location import RemotePlace
from trustlens.store.run_info import RunInfo, read_info

_log: Final = logging.getLogger("trustlens")

_UPLOADED: Final = ".uploaded.json"
"""The file of a spool that says what of it was uploaded: that is not uploaded again by who resumes
it."""

_CHUNK: Final = 1 << 22  # bytes


@dataclass(frozen=True, slots=True)
class Local:
    """A file of a spool as it was when it was looked at."""

    size: int
    changed: int


UNKNOWN: Final = Local(-1, -1)
"""A file on the store of which nothing is noted here."""


def spool_of(remote: RemotePlace) -> Path:
    """Return the folder on this machine in which a run is written that lies on an object store."""
    digest = hashlib.blake2b(remote.identity.encode(), digest_size=6).hexdigest()
    return cache_folder() / "spool" / f"{remote.name}-{digest}"


def prepared(directory: Place, *, resume: bool) -> tuple[Path, RemoteLock | None]:
    """Return where a run is written, with all that there is of it if it is to be resumed.

    And of a run on an object store, the right to write there.

    Raises
    ------
    UsageError
        There is a run at that address already, and it is not to be resumed; it is being recorded
        by another; or the address cannot be written.
    RunError
        The object store does not answer, or what is there is no run.
    """
    if isinstance(directory, Path):
        return directory.absolute(), None  # the training may go to another folder
    spool = spool_of(directory)
    if not resume:
        _refuse_run(directory, spool)
    held = is_held(spool)
    if held:
        raise UsageError(
            f"'{directory}' already holds a run that another recorder on this machine is "
            "recording; close that one first, or record to another address"
        )
    lock = RemoteLock(directory)
    lock.take(known_dead=session_in(spool) if held is False else None)
    with kept_if_well(lock):
        if not resume:  # it may have come meanwhile
            _refuse_run(directory, spool)
        _bring(directory, spool, lock)
    return spool, lock


@contextmanager
def kept_if_well(lock: RemoteLock | None) -> Generator[None]:
    """Give the right to write back if what it was taken for fails."""
    try:
        yield
    except BaseException:
        if lock is not None:
            lock.release()
        raise


def _bring(remote: RemotePlace, spool: Path, lock: RemoteLock) -> None:
    """Have all that there is of a run in its spool."""
    here = (spool / RUN_FILE).exists()
    if not exists(remote / RUN_FILE):
        if not here:
            _refuse_strays(remote)
        return
    if here and session_in(spool) == session_in(remote) and _has_all(spool, remote):
        return
    if here:
        _set_aside(spool, remote)
    else:  # a download broke off
        shutil.rmtree(spool, ignore_errors=True)
    _download(remote, spool, lock)


def _has_all(spool: Path, remote: RemotePlace) -> bool:
    """Tell whether a spool has all sealed files of the store; if not, somebody cleaned the cache.

    Whoever went on with it would make other files of their names.
    """
    sealed = {name for name in files_of(remote) if name.startswith(TABLES)}
    return sealed.issubset(files_of(spool))


def session_in(directory: Place) -> str | None:
    """Return which recording wrote last into a run; None if there is no run, or it does not say."""
    if not exists(directory / RUN_FILE):
        return None
    return read_info(directory).recording.session


def is_written(directory: Place, info: RunInfo) -> bool | None:
    """Tell whether a process on this machine records a run; None if that cannot be told.

    Parameters
    ----------
    directory : Place
        The run.
    info : RunInfo
        Its ``run.json``.
    """
    if isinstance(directory, Path):
        return is_held(directory)
    spool = spool_of(directory)
    with suppress(RunError):  # of the spool, which is not what was asked about
        if session_in(spool) == info.recording.session:
            return is_held(spool)
    return None


def _refuse_run(remote: RemotePlace, spool: Path) -> None:
    if exists(remote / RUN_FILE):
        raise UsageError(
            f"'{remote}' already holds a run; give resume=True to go on with it, or record to "
            "another address"
        )
    if (spool / RUN_FILE).exists():
        raise UsageError(
            f"a run was recorded to '{remote}' of which nothing could be uploaded: it lies in "
            f"'{spool}'; give resume=True to go on with it, upload it by trustlens repair "
            f"'{remote.whole_address}', or remove that folder"
        )


def _refuse_strays(remote: RemotePlace) -> None:
    # Their rows would be read with the new ones.
    strays = [name for name in (JOURNAL, *TABLES) if entries(remote / name)]
    if strays:
        raise UsageError(
            f"'{remote}' holds files of a run without its {RUN_FILE} ({', '.join(strays)}): an "
            "upload broke off; trustlens repair on the machine that recorded it ends it; or remove "
            "them, or record to another address"
        )


def _set_aside(spool: Path, remote: RemotePlace) -> None:
    kept = spool.with_name(f"{spool.name}-{time.time_ns()}")
    spool.rename(kept)
    _log.warning(
        "trustlens: '%s' was gone on with elsewhere since this machine recorded it, or files of "
        "that are gone; what was not uploaded is in '%s': remove it if you do not want it",
        remote,
        kept,
    )


def _download(remote: RemotePlace, spool: Path, lock: RemoteLock) -> None:
    from tqdm.auto import tqdm  # noqa: PLC0415 — not at the start of every training

    files = files_of(remote)
    with tqdm(
        total=sum(file.size for file in files.values()),
        unit="B",
        unit_scale=True,
        delay=2,
        desc=f"fetching {remote.name}",
        disable=None,  # where nobody sees it
    ) as bar:
        for name in sorted(files, key=lambda name: name == RUN_FILE):  # that one last
            path = spool / name
            path.parent.mkdir(parents=True, exist_ok=True)
            file = remote / name
            with open_input(file) as source, path.open("wb") as target, reading(file):
                while chunk := source.read(_CHUNK):
                    target.write(chunk)
                    bar.update(len(chunk))
    if not lock.is_kept():
        raise UsageError(
            f"another recording goes on with '{remote}' since this one began to fetch it; close "
            "that one first, or record to another address"
        )
    note_uploaded(spool, files_of(spool))


def folders_of(run: Place) -> list[str]:
    """Return the folders in which there are files of a run; of the run itself, an empty name."""
    levels = [f"{OVERVIEW}/{each}" for each in _folders_in(run / OVERVIEW)]
    replaced = [f"{REPLACED}/{each}" for each in _folders_in(run / REPLACED)]
    tables = [f"{each}/{table}" for each in replaced for table in TABLES]
    return ["", JOURNAL, *TABLES, *levels, *tables]


def _folders_in(folder: Place) -> list[str]:
    found = entries(folder)
    return [each.name for each in found if not each.is_plain and each.name.isdecimal()]


def files_of(run: Place) -> dict[str, Local]:
    """Return the files of a run as they are now, by their paths within it."""
    return {
        f"{folder}/{entry.name}" if folder else entry.name: Local(entry.size, entry.changed)
        for folder in folders_of(run)
        for entry in entries(run / folder if folder else run)
        if entry.is_plain and not entry.name.startswith(".")
    }


def uploaded(spool: Path) -> dict[str, Local] | None:
    """Return what of a spool was uploaded already, as a process before this one noted it if any."""
    try:
        noted: Any = json.loads((spool / _UPLOADED).read_bytes())
        return {str(name): Local(*map(int, local)) for name, local in noted.items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def note_uploaded(spool: Path, there: Mapping[str, Local | None]) -> None:
    """Note what of a spool is uploaded, for who goes on with it after this process."""
    noted = {
        name: astuple(local)
        for name, local in there.items()
        if local is not None and local != UNKNOWN
    }
    with suppress(OSError), atomic_write(spool / _UPLOADED) as temporary:
        temporary.write_text(json.dumps(noted), encoding="utf-8")
