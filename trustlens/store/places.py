"""Where a run lies: what is read of a directory, and nothing that lies outside it.

Within a run there are plain files and plain folders only. A symbolic link could lead out of it, a
pipe could be waited for without end: neither is ever opened.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import pyarrow as pa

from trustlens.errors import RunError

Place: TypeAlias = Path
"""A directory or a file, of a run or above it."""

TEXT_LIMIT: Final = 1 << 26
"""Bytes of a ``run.json`` at most; one of 10,000 layers has 2 MB."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What lies in a folder under a name; ``changed`` is in nanoseconds since 1970."""

    name: str
    size: int
    changed: int
    is_plain: bool


def entries(folder: Place) -> list[Entry]:
    """Return what lies in a folder, in no particular order; nothing if there is no such folder.

    Raises
    ------
    RunError
        It is a symbolic link.
    """
    _refuse_link(folder)
    found: list[Entry] = []
    try:
        with os.scandir(folder) as listed:
            for each in listed:
                try:
                    status = each.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                plain = stat.S_ISREG(status.st_mode)
                found.append(Entry(each.name, status.st_size, status.st_mtime_ns, plain))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return found


def exists(place: Place) -> bool:
    """Tell whether there is anything of that name."""
    return place.exists()


def changed(folder: Place) -> int | None:
    """Return when a folder's names last changed, in nanoseconds since 1970; None if unknown."""
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return None


def open_input(file: Place, entry: Entry | None = None) -> pa.NativeFile:
    """Open a file of a run for reading.

    Parameters
    ----------
    file : Place
        The file.
    entry : Entry, optional
        As it was listed: it is that file or none.

    Raises
    ------
    RunError
        It is no plain file.
    FileNotFoundError
        It is not there, or was replaced since it was listed.
    """
    _check_plain(file)
    # As Arrow's own: its threads may drop one of Python's as the interpreter ends, and abort.
    opened = pa.OSFile(str(file), "rb")
    if entry is not None:
        status = file.lstat()  # after the opening: what replaces it from now on is not opened
        if (status.st_size, status.st_mtime_ns) != (entry.size, entry.changed):
            opened.close()
            raise FileNotFoundError(file)
    return opened


def read_bytes(file: Place) -> bytes:
    """Return what a small file of a run holds.

    Raises
    ------
    RunError
        It is no plain file, or not small.
    OSError
        It is not there, or cannot be read.
    """
    size = _check_plain(file)
    if size > TEXT_LIMIT:
        raise RunError(f"'{file}' has {size:,} bytes, too many to be trustlens's; restore it")
    return file.read_bytes()


def _check_plain(file: Path) -> int:
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode):
        what = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "no plain file"
        raise RunError(
            f"'{file}' is {what}, which trustlens never writes and does not follow; "
            "put the file itself there"
        )
    return status.st_size


def _refuse_link(folder: Path) -> None:
    if folder.is_symlink():
        raise RunError(
            f"'{folder}' is a symbolic link, which trustlens never writes within a run and does "
            "not follow; put the folder itself there"
        )
