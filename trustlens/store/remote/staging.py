"""The staging folder of a run on an object store: the run is written there, then uploaded.

It is in the user's cache folder. Files stay there until they are uploaded, so that a failure of the
network loses nothing.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Final

from trustlens.errors import UsageError
from trustlens.schema import TABLES
from trustlens.store.address import Address, locate
from trustlens.store.atomic_write import atomic_write
from trustlens.store.layout import JOURNAL, OVERVIEW, REPLACED, RUN_FILE
from trustlens.store.location import Location
from trustlens.store.locking import is_held
from trustlens.store.remote.lease import Lease
from trustlens.store.remote.status import session_in, staging_folder
from trustlens.store.remote_location import RemoteLocation, remote_of

_log: Final = logging.getLogger("trustlens")

_UPLOADED: Final = ".uploaded.json"
"""The file of a staging folder that lists the uploaded files, so that a resumed recording does not
upload them again."""

_CHUNK: Final = 1 << 22  # bytes


@dataclass(frozen=True, slots=True)
class Version:
    """Size and time of change (ns since 1970) of a file: they show whether it has changed."""

    size: int
    changed: int


UNKNOWN: Final = Version(-1, -1)
"""The version of a file on the store that may belong to the run, if there is no list of uploads."""


def prepare_folder(directory: Location, *, resume: bool) -> tuple[Path, Lease | None]:
    """Return the folder in which a run is written, and the lease if it is on an object store.

    If a run is resumed, all of its files are downloaded to the folder.

    Raises
    ------
    UsageError
        If the address holds a run and ``resume`` is False, another process is recording the run, or
        the address cannot be written.
    RunError
        If the object store does not answer, or its run.json cannot be read.
    """
    remote = remote_of(directory)
    if remote is None:
        return Path(directory.filesystem_path), None  # absolute: the process may change its folder
    staging = staging_folder(remote)
    if not resume:
        _refuse_run(remote, staging)
    is_held_here = is_held(staging)
    if is_held_here:
        raise UsageError(
            f"'{directory}' already holds a run that another recorder on this machine is "
            "recording; close that recorder first, or record to another address"
        )
    lease = Lease(remote)
    lease.take(known_dead=session_in(staging) if is_held_here is False else None)
    with released_on_error(lease):
        if not resume:  # another one may have been recorded since the first check
            _refuse_run(remote, staging)
        _complete_staging(remote, staging, lease)
    return staging, lease


@contextmanager
def released_on_error(lease: Lease | None) -> Generator[None]:
    """Release the lease if the block raises."""
    try:
        yield
    except BaseException:
        if lease is not None:
            lease.release()
        raise


def _complete_staging(remote: RemoteLocation, staging: Path, lease: Lease) -> None:
    """Make sure that the staging folder has all files of the run."""
    exists_here = (staging / RUN_FILE).exists()
    if not (remote / RUN_FILE).exists():
        if not exists_here:
            _refuse_files_without_run(remote)
        return
    if exists_here and session_in(staging) == session_in(remote) and _has_all(staging, remote):
        return
    if exists_here:
        _set_aside(staging, remote)
    else:  # a download was interrupted
        shutil.rmtree(staging, ignore_errors=True)
    _download(remote, staging, lease)


def _has_all(staging: Path, remote: RemoteLocation) -> bool:
    """Return whether a staging folder has all segments of the store.

    If not, the cache was cleaned, and a resumed recording would reuse their numbers.
    """
    sealed = {name for name in files_of(remote) if name.startswith(TABLES)}
    return sealed.issubset(files_of(staging))


def _refuse_run(remote: RemoteLocation, staging: Path) -> None:
    if (remote / RUN_FILE).exists():
        raise UsageError(
            f"'{remote}' already holds a run; give resume=True to resume it, or record to "
            "another address"
        )
    if (staging / RUN_FILE).exists():
        raise UsageError(
            f"a run was recorded to '{remote}', but nothing could be uploaded: it is in "
            f"'{staging}'; give resume=True to resume it, upload it with trustlens repair "
            f"'{remote.whole_address}', or remove that folder"
        )


def _refuse_files_without_run(remote: RemoteLocation) -> None:
    # Their rows would be read with the new ones.
    strays = [name for name in (JOURNAL, *TABLES) if (remote / name).entries()]
    if strays:
        raise UsageError(
            f"'{remote}' holds files of a run without its {RUN_FILE} ({', '.join(strays)}): an "
            "upload was interrupted; complete it with trustlens repair on the recording machine, "
            "remove the files, or record to another address"
        )


def _set_aside(staging: Path, remote: RemoteLocation) -> None:
    kept = staging.with_name(f"{staging.name}-{time.time_ns()}")
    staging.rename(kept)
    _log.warning(
        "trustlens: '%s' was resumed on another machine, or local files are missing. Rows that "
        "were not uploaded were moved to '%s'; delete that folder if you do not need them.",
        remote,
        kept,
    )


def _download(remote: RemoteLocation, staging: Path, lease: Lease) -> None:
    from tqdm.auto import tqdm  # noqa: PLC0415 — slow to import, rarely needed

    files = files_of(remote)
    with tqdm(
        total=sum(file.size for file in files.values()),
        unit="B",
        unit_scale=True,
        delay=2,
        desc=f"downloading {remote.name}",
        disable=None,  # if it is not a terminal
    ) as bar:
        for name in sorted(files, key=lambda name: name == RUN_FILE):  # run.json last
            path = staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            file = remote / name
            with file.open() as source, path.open("wb") as target, file.reading():
                while chunk := source.read(_CHUNK):
                    target.write(chunk)
                    bar.update(len(chunk))
    if not lease.is_kept():
        raise UsageError(
            f"another process began to record '{remote}' while this one was downloading it; close "
            "that recorder first, or record to another address"
        )
    note_uploaded(staging, files_of(staging))


def folders_of(run: Location) -> list[str]:
    """Return the folders that may hold files of a run, relative to it; ``""`` is the run itself."""
    levels = [f"{OVERVIEW}/{each}" for each in _folders_in(run / OVERVIEW)]
    replaced = [f"{REPLACED}/{each}" for each in _folders_in(run / REPLACED)]
    tables = [f"{each}/{table}" for each in replaced for table in TABLES]
    return ["", JOURNAL, *TABLES, *levels, *tables]


def _folders_in(folder: Location) -> list[str]:
    return [each.name for each in folder.entries() if not each.is_plain and each.name.isdecimal()]


def files_of(address: Address) -> dict[str, Version]:
    """Return the files of a run as they are now, by their paths within it."""
    run = locate(address)
    return {
        f"{folder}/{entry.name}" if folder else entry.name: Version(entry.size, entry.changed)
        for folder in folders_of(run)
        for entry in (run / folder if folder else run).entries()
        if entry.is_plain and not entry.name.startswith(".")
    }


def uploaded(staging: Path) -> dict[str, Version] | None:
    """Return the files listed as uploaded; None if there is no list, {} if it is invalid."""
    try:
        noted: Any = json.loads((staging / _UPLOADED).read_bytes())
        return {str(name): Version(*map(int, version)) for name, version in noted.items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def note_uploaded(staging: Path, there: Mapping[str, Version | None]) -> None:
    """List the uploaded files, for a process that resumes the recording."""
    noted = {
        name: astuple(version)
        for name, version in there.items()
        if version is not None and version != UNKNOWN
    }
    with suppress(OSError), atomic_write(staging / _UPLOADED) as temporary:
        temporary.write_text(json.dumps(noted), encoding="utf-8")
