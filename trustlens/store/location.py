"""Where a run lies: what is read of a directory, and nothing that lies outside it.

It is on this machine or on an object store. Within a run there are plain files and plain folders
only. A symbolic link could lead out of it, a pipe could be waited for without end: neither is ever
opened.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import pyarrow as pa

from trustlens.errors import RunError
from trustlens.store.remote_location import RemotePlace, reason, remote_place

Place: TypeAlias = Path | RemotePlace
"""A directory or a file, of a run or above it."""

TEXT_LIMIT: Final = 1 << 26
"""Bytes of a ``run.json`` at most; one of 10,000 layers has 2 MB."""


def place(address: str | os.PathLike[str] | Place) -> Place:
    """Return what a path or an address means.

    Raises
    ------
    UsageError, MissingDependencyError
        It is an address that cannot be opened; the message says why.
    """
    if isinstance(address, RemotePlace):
        return address
    text = os.fspath(address)
    if "://" not in text:
        return Path(text)
    return Path(text.removeprefix("file://")) if text.startswith("file://") else remote_place(text)


@dataclass(frozen=True, slots=True)
class Entry:
    """What lies in a folder under a name; ``changed`` is in nanoseconds since 1970.

    ``changed`` is 0 where the object store does not tell: what is called the same may then be
    another, and nothing of it is to be remembered.
    """

    name: str
    size: int
    changed: int
    is_plain: bool


def entries(folder: Place) -> list[Entry]:
    """Return what lies in a folder, in no particular order; nothing if there is no such folder.

    Raises
    ------
    RunError
        It is a symbolic link or may not be read, or the object store does not answer.
    """
    if isinstance(folder, RemotePlace):
        return _remote_entries(folder)
    refuse_link(folder)
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
    except OSError as error:
        raise _unreadable(folder, error) from None
    return found


def names_in(folder: Place) -> list[str]:
    """Return the names of what lies in a folder, as :func:`entries` does, and sooner."""
    if isinstance(folder, RemotePlace):
        return [entry.name for entry in _remote_entries(folder)]
    refuse_link(folder)
    try:
        return os.listdir(folder)  # noqa: PTH208 — of texts, which is three times as quick
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _unreadable(folder, error) from None


def exists(place: Place) -> bool:
    """Tell whether there is anything of that name."""
    if isinstance(place, RemotePlace):
        with _answering(place):
            return place.filesystem.get_file_info(place.path).type.name != "NotFound"
    return place.exists()


def changed(folder: Place) -> int | None:
    """Return when a folder's names last changed, in nanoseconds since 1970; None if unknown."""
    if isinstance(folder, RemotePlace):
        return None
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
    if isinstance(file, RemotePlace):
        with _answering(file):
            remote = file.filesystem.open_input_file(file.path)
            if entry is not None and remote.size() != entry.size:
                remote.close()
                raise FileNotFoundError(file)
            return remote
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
    if isinstance(file, RemotePlace):
        with _answering(file), open_input(file) as opened:
            _check_small(file, opened.size())
            return opened.read()
    _check_small(file, _check_plain(file))
    return file.read_bytes()


def _remote_entries(folder: RemotePlace) -> list[Entry]:
    from pyarrow.fs import FileSelector  # noqa: PLC0415 — most runs lie on this machine

    with _answering(folder):
        found = folder.filesystem.get_file_info(FileSelector(folder.path, allow_not_found=True))
    return [
        Entry(info.base_name, info.size or 0, info.mtime_ns or 0, info.type.name == "File")
        for info in found
    ]


@contextmanager
def reading(file: Place) -> Generator[None]:
    """Tell what is wrong where the bytes of an open file cannot be had from its store.

    Raises
    ------
    FileNotFoundError
        It is not there any more.
    RunError
        The object store does not answer.
    """
    try:
        yield
    except OSError as error:
        if isinstance(file, RemotePlace):
            check_there(file)
            raise _unanswered(file, error) from None
        raise


def check_there(file: RemotePlace) -> None:
    """Raise FileNotFoundError if a file is gone since it was opened, RunError as `exists` does."""
    if not exists(file):
        raise FileNotFoundError(file)


@contextmanager
def _answering(place: RemotePlace) -> Generator[None]:
    try:
        yield
    except (FileNotFoundError, RunError):
        raise
    except (OSError, pa.ArrowException) as error:
        raise _unanswered(place, error) from None


def _unanswered(place: RemotePlace, error: Exception) -> RunError:
    return RunError(
        f"'{place}' cannot be read ({reason(error)}); check the address, your credentials and the "
        "network"
    )


def _check_small(file: Place, size: int) -> None:
    if size > TEXT_LIMIT:
        raise RunError(f"'{file}' has {size:,} bytes, too many to be trustlens's; restore it")


def _check_plain(file: Path) -> int:
    status = file.lstat()
    if wrong := not_plain(file, status.st_mode):
        raise RunError(f"{wrong}; put the file itself there")
    return status.st_size


def not_plain(file: Path, mode: int) -> str:
    """Return what is wrong with a file of a run if it is no plain one by its mode, else nothing."""
    if stat.S_ISREG(mode):
        return ""
    what = "a symbolic link" if stat.S_ISLNK(mode) else "no plain file"
    return f"'{file}' is {what}, which trustlens never writes and does not follow"


def _unreadable(folder: Path, error: OSError) -> RunError:
    return RunError(f"'{folder}' cannot be read ({error.strerror}); check its permissions")


def refuse_link(folder: Path) -> None:
    """Raise RunError if a folder of a run is a symbolic link."""
    if folder.is_symlink():
        raise RunError(
            f"'{folder}' is a symbolic link, which trustlens never writes within a run and does "
            "not follow; put the folder itself there"
        )
