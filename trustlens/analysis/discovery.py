"""Open a run, and find the runs below a folder."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

from trustlens.analysis.run import Run
from trustlens.errors import UsageError
from trustlens.store.address import Address
from trustlens.store.layout import RUN_FILE

_log: Final = logging.getLogger("trustlens")


def open_run(path: Address) -> Run:
    """Open a run for reading. Its recording may still be in progress.

    If rows of the run are missing, the logger ``trustlens`` logs a warning; see
    :meth:`Run.missing`.

    Parameters
    ----------
    path : str or path
        The directory that ``trustlens.record`` wrote, or its address: ``s3://bucket/runs/lamb``.

    Raises
    ------
    RunError
        If there is no such directory, the directory holds no run, or this version of trustlens
        cannot read the run.
    UsageError
        If the scheme of the address is unknown.

    Examples
    --------
    >>> run = trustlens.open_run("runs/lamb")
    >>> run.matrix("trust_ratio").tail()
    """
    run = Run(path)
    for sentence in run.missing():
        _log.warning("trustlens: '%s': %s", run.path, sentence)
    return run


def local_folder(address: str | os.PathLike[str]) -> Path:
    """Return the local folder that a path or a ``file://`` address names.

    Raises
    ------
    UsageError
        If the address has another scheme, such as ``s3://``.
    """
    path = os.fspath(address).removeprefix("file://")
    if "://" in path:
        raise UsageError(
            f"'{path.split('?')[0]}' is not on this machine; list, dashboard and find_runs read "
            "local folders only. Use 'trustlens show ADDRESS' for one run, or trustlens.dataset "
            "for many"
        )
    return Path(path)


def find_runs(root: str | os.PathLike[str]) -> list[Path]:
    """Return the directories of all runs at or below ``root``, sorted by path.

    Raises
    ------
    UsageError
        If ``root`` is not a local directory, or cannot be read.
    """
    top = local_folder(root)
    try:
        os.scandir(top).close()  # os.walk would skip an unreadable folder silently
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            reason = "does not exist"
        elif isinstance(error, NotADirectoryError):
            reason = "is not a directory"
        else:
            reason = f"cannot be read ({error.strerror})"
        raise UsageError(f"'{top}' {reason}; give a directory that holds runs") from None
    found: list[Path] = []
    for folder, subfolders, files in os.walk(top):
        if RUN_FILE in files:
            found.append(Path(folder))
            subfolders.clear()  # runs are not nested
        else:
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
    return sorted(found)
