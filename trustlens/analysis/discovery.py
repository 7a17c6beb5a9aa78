"""Opening a run, and finding those below a folder."""

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
    """Open a recorded run for reading; it may still be being written.

    If something is missing from it, the logger ``trustlens`` warns; see :meth:`Run.missing`.

    Parameters
    ----------
    path : str or path
        The directory that ``trustlens.record`` wrote, or its address: ``s3://bucket/runs/lamb``.

    Raises
    ------
    RunError
        There is no such directory, no run in it, or it is not one that this version can read.
    UsageError
        It is an address of a kind that is not known.

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
    """Return the folder on this machine that a path, or an address of ``file://``, means.

    Raises
    ------
    UsageError
        It is an address of another kind.
    """
    path = os.fspath(address).removeprefix("file://")
    if "://" in path:
        raise UsageError(
            f"'{path.split('?')[0]}' is not on this machine, and list, dashboard and find_runs "
            "read folders that are; elsewhere use 'trustlens show ADDRESS' for one run, "
            "trustlens.dataset for many"
        )
    return Path(path)


def find_runs(root: str | os.PathLike[str]) -> list[Path]:
    """Return the directories that hold a run, ``root`` itself or below it, sorted by path.

    Raises
    ------
    UsageError
        There is no such directory, it cannot be read, or it is not on this machine.
    """
    top = local_folder(root)
    try:
        os.scandir(top).close()  # since os.walk skips what it cannot read
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            what = "does not exist"
        elif isinstance(error, NotADirectoryError):
            what = "is not a directory"
        else:
            what = f"cannot be read ({error.strerror})"
        raise UsageError(f"'{top}' {what}; give a directory that holds runs") from None
    found: list[Path] = []
    for folder, subfolders, files in os.walk(top):
        if RUN_FILE in files:
            found.append(Path(folder))
            subfolders.clear()  # a run holds no runs
        else:
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
    return sorted(found)
