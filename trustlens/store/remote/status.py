"""Finding out whether a process on this machine records a run."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from trustlens.cache_folder import cache_folder
from trustlens.errors import RunError
from trustlens.store.address import Address, locate
from trustlens.store.layout import RUN_FILE
from trustlens.store.location import Location
from trustlens.store.locking import is_held
from trustlens.store.remote_location import RemoteLocation, remote_of
from trustlens.store.run_info import RunInfo, read_info


def staging_folder(remote: RemoteLocation) -> Path:
    """Return the folder on this machine where a run is written before its files are uploaded."""
    digest = hashlib.blake2b(remote.identity.encode(), digest_size=6).hexdigest()
    return cache_folder() / "spool" / f"{remote.name}-{digest}"


def session_in(address: Address) -> str | None:
    """Return the session in a run's ``run.json``; None if there is no run, or no session in it."""
    directory = locate(address)
    if not (directory / RUN_FILE).exists():
        return None
    return read_info(directory).recording.session


def is_recorded_here(directory: Location, info: RunInfo) -> bool | None:
    """Return whether a process on this machine records a run; None if that is not known.

    Parameters
    ----------
    directory : Location
        Where the run is.
    info : RunInfo
        The contents of the run's ``run.json``.
    """
    remote = remote_of(directory)
    if remote is None:
        return is_held(Path(directory.filesystem_path))
    staging = staging_folder(remote)
    with suppress(RunError):  # the run.json of the staging folder is damaged
        if session_in(staging) == info.recording.session:
            return is_held(staging)
    return None
