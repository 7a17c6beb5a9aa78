"""The staging folder: a folder on this machine where a run for an object store is written first.

The folder is in the user's cache folder. The uploader copies its files to the store. They stay in
the folder until the whole run is uploaded, so that a failure of the network loses nothing.
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
"""A file in the staging folder that lists the uploaded files, so that a resumed recording does not
upload these again."""

_CHUNK: Final = 1 << 22  # number of bytes read at once in a download


@dataclass(frozen=True, slots=True)
class Version:
    """The size of a file in bytes, and its time of change in ns since 1970.

    If both are the same as before, the file has not changed.
    """

    size: int
    changed: int


UNKNOWN: Final = Version(-1, -1)
"""The version of a file on the store if there is no valid list of uploaded files. Without the list,
it is not known whether the file belongs to the run."""


def prepare_folder(directory: Location, *, resume: bool) -> tuple[Path, Lease | None]:
    """Prepare the folder on this machine in which a run is written.

    For a run on this machine, the folder is ``directory`` itself. For a run on an object store, it
    is the staging folder. In this case, the lease of the run is taken. If the staging folder lacks
    files of the run, the run is downloaded into it.

    Parameters
    ----------
    directory : Location
        Where the user wants the run to be.
    resume : bool
        Whether ``directory`` may already hold a run, which is then resumed.

    Returns
    -------
    folder : Path
        The folder to write into.
    lease : Lease or None
        The lease; None if the run is on this machine.

    Raises
    ------
    UsageError
        If the address holds a run and ``resume`` is False, another process is recording the run, or
        the address cannot be written.
    RunError
        If the object store does not answer, or a run.json cannot be read.
    """
    remote = remote_of(directory)
    if remote is None:
        return Path(directory.filesystem_path), None  # absolute: it must outlast os.chdir
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
        if not resume:  # another run may have begun after the first check
            _refuse_run(remote, staging)
        _complete_staging(remote, staging, lease)
    return staging, lease


@contextmanager
def released_on_error(lease: Lease | None) -> Generator[None]:
    """Release the lease if the ``with`` block raises an error."""
    try:
        yield
    except BaseException:
        if lease is not None:
            lease.release()
        raise


def _complete_staging(remote: RemoteLocation, staging: Path, lease: Lease) -> None:
    """Download the run from the store, unless the staging folder already has all of its files."""
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
    """Return whether a staging folder has all segments that are on the store.

    Segments are missing if the user's cache folder was cleaned. A resumed recording would give
    their numbers to new segments.
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
    # Rows in these files would be read together with the rows of the new run.
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
        disable=None,  # no progress bar if the output is not a terminal
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
    """Return the folders that may hold files of a run, as paths relative to the run's folder.

    The first one is ``""``, the run's folder itself.
    """
    levels = [f"{OVERVIEW}/{each}" for each in _folders_in(run / OVERVIEW)]
    replaced = [f"{REPLACED}/{each}" for each in _folders_in(run / REPLACED)]
    tables = [f"{each}/{table}" for each in replaced for table in TABLES]
    return ["", JOURNAL, *TABLES, *levels, *tables]


def _folders_in(folder: Location) -> list[str]:
    return [each.name for each in folder.entries() if not each.is_plain and each.name.isdecimal()]


def files_of(address: Address) -> dict[str, Version]:
    """Return the current version of each file of a run, by its path within the run's folder."""
    run = locate(address)
    return {
        f"{folder}/{entry.name}" if folder else entry.name: Version(entry.size, entry.changed)
        for folder in folders_of(run)
        for entry in (run / folder if folder else run).entries()
        if entry.is_plain and not entry.name.startswith(".")
    }


def uploaded(staging: Path) -> dict[str, Version] | None:
    """Return the version of each uploaded file, by path, as the list of uploaded files says.

    None if there is no list; an empty dict if the list is invalid.
    """
    try:
        noted: Any = json.loads((staging / _UPLOADED).read_bytes())
        return {str(name): Version(*map(int, version)) for name, version in noted.items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def note_uploaded(staging: Path, there: Mapping[str, Version | None]) -> None:
    """Write the list of uploaded files into the staging folder; see `_UPLOADED`.

    Parameters
    ----------
    staging : Path
        The staging folder.
    there : mapping of str to Version or None
        The files on the store, with the version that was uploaded. Files whose version is None or
        `UNKNOWN` are not listed.
    """
    noted = {
        name: astuple(version)
        for name, version in there.items()
        if version is not None and version != UNKNOWN
    }
    with suppress(OSError), atomic_write(staging / _UPLOADED) as temporary:
        temporary.write_text(json.dumps(noted), encoding="utf-8")
