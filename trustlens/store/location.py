"""Where runs are stored: one protocol, and its implementation for directories of this machine.

A run consists of plain files in plain folders. A symbolic link could lead out of the run, and
opening a pipe could block forever: neither is ever opened.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import pyarrow as pa

from trustlens.errors import RunError

TEXT_LIMIT: Final = 1 << 26
"""Maximum size of a ``run.json`` in bytes; one of 10,000 layers has 2 MB."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or folder as it was listed.

    Attributes
    ----------
    name : str
        Its name in the folder.
    size : int
        Bytes.
    changed : int
        Time of the last change, in nanoseconds since 1970; 0 if the store does not tell it. Then
        an entry does not identify a content, and nothing read from it may be cached.
    is_plain : bool
        Whether it is a plain file.
    """

    name: str
    size: int
    changed: int
    is_plain: bool


class Location(Protocol):
    """A folder or a file: of a run, or above one.

    Errors of methods that read are a `RunError`, except that a file which is not there is a
    FileNotFoundError.
    """

    @property
    def name(self) -> str:
        """The last part of its path."""
        ...

    @property
    def is_remote(self) -> bool:
        """Whether it is on an object store: each request is slow, and uploads come late."""
        ...

    @property
    def filesystem(self) -> Any:
        """The ``pyarrow.fs.FileSystem`` that it is on."""
        ...

    @property
    def filesystem_path(self) -> str:
        """Its path on that file system."""
        ...

    @property
    def whole_address(self) -> str:
        """The address as a command takes it."""
        ...

    @property
    def identity(self) -> str:
        """A text that no other location has."""
        ...

    def __truediv__(self, name: str) -> Location:
        """Return the location of that name, or relative path, in this folder."""
        ...

    def entries(self) -> list[Entry]:
        """Return what is in this folder, in no particular order; nothing if there is no folder."""
        ...

    def names(self) -> list[str]:
        """Return the names in this folder, as :meth:`entries` does, but faster."""
        ...

    def exists(self) -> bool:
        """Return whether there is a file or a folder here."""
        ...

    def entry(self) -> Entry | None:
        """Return this file as it is now. An equal entry means that it has not changed.

        None if it is not there, cannot be looked at, or the store tells no time of change.
        """
        ...

    def names_changed(self) -> int | None:
        """Return when this folder's names last changed, in ns since 1970; None if unknown."""
        ...

    def open(self, entry: Entry | None = None) -> pa.NativeFile:
        """Open this file for reading.

        Parameters
        ----------
        entry : Entry, optional
            The file as it was listed: FileNotFoundError if it was replaced since.
        """
        ...

    def read_bytes(self) -> bytes:
        """Return the content of this file, which must be small.

        Raises
        ------
        OSError
            It cannot be read.
        """
        ...

    def reading(self) -> AbstractContextManager[None]:
        """Return a context in which this file, which is open, is read.

        Errors of a store are turned into FileNotFoundError or `RunError`.
        """
        ...


@dataclass(frozen=True)
class LocalLocation:
    """A folder or a file on this machine.

    Attributes
    ----------
    path : Path
        Its path.
    """

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> LocalLocation:
        return LocalLocation(self.path / name)

    @property
    def name(self) -> str:
        """The last part of its absolute path."""
        return self.path.absolute().name

    @property
    def is_remote(self) -> bool:
        """False."""
        return False

    @property
    def filesystem(self) -> Any:
        """Arrow's local file system."""
        from pyarrow.fs import LocalFileSystem  # noqa: PLC0415 — slow to import, rarely needed

        return LocalFileSystem()

    @property
    def filesystem_path(self) -> str:
        """Its absolute path."""
        return str(self.path.absolute())

    @property
    def identity(self) -> str:
        """Its absolute path."""
        return self.filesystem_path

    @property
    def whole_address(self) -> str:
        """Its path."""
        return str(self.path)

    def entries(self) -> list[Entry]:
        """Return what is in this folder; RunError if it is a link or may not be read."""
        refuse_link(self.path)
        found: list[Entry] = []
        try:
            with os.scandir(self.path) as listed:
                for each in listed:
                    try:
                        status = each.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    found.append(_entry(each.name, status))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise _unreadable(self.path, error) from None
        return found

    def names(self) -> list[str]:
        """Return the names in this folder; RunError if it is a link or may not be read."""
        refuse_link(self.path)
        try:
            return os.listdir(self.path)  # noqa: PTH208 — strings, three times as fast
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise _unreadable(self.path, error) from None

    def exists(self) -> bool:
        """Return whether there is a file or a folder here."""
        return self.path.exists()

    def entry(self) -> Entry | None:
        """Return this file as it is now; None if it is not there or cannot be looked at."""
        try:
            return _entry(self.path.name, self.path.lstat())
        except OSError:
            return None

    def names_changed(self) -> int | None:
        """Return when this folder's names last changed, in ns since 1970; None if unknown."""
        try:
            return self.path.stat().st_mtime_ns
        except OSError:
            return None

    def open(self, entry: Entry | None = None) -> pa.NativeFile:
        """Open this file for reading; RunError if it is no plain file."""
        self._check_plain()
        # As Arrow's own: its threads may drop one of Python's as the interpreter ends, and abort.
        opened = pa.OSFile(str(self.path), "rb")
        if entry is not None:
            now = self.path.lstat()  # after the opening: what replaces it from now on is not opened
            if (now.st_size, now.st_mtime_ns) != (entry.size, entry.changed):
                opened.close()
                raise FileNotFoundError(self.path)
        return opened

    def read_bytes(self) -> bytes:
        """Return the content of this file; RunError if it is no plain file, or not small."""
        check_small(self, self._check_plain())
        return self.path.read_bytes()

    @contextmanager
    def reading(self) -> Generator[None]:
        """Return a context in which this file is read: errors stay as they are."""
        yield

    def _check_plain(self) -> int:
        status = self.path.lstat()
        if wrong := not_plain(self.path, status.st_mode):
            raise RunError(f"{wrong}; put the file itself there")
        return status.st_size


def _entry(name: str, status: os.stat_result) -> Entry:
    return Entry(name, status.st_size, status.st_mtime_ns, stat.S_ISREG(status.st_mode))


def check_small(file: object, size: int) -> None:
    """Raise RunError if a file is larger than any ``run.json``."""
    if size > TEXT_LIMIT:
        raise RunError(f"'{file}' has {size:,} bytes, too many to be trustlens's; restore it")


def not_plain(file: Path, mode: int) -> str:
    """Return what is wrong with a file of that mode if it is no plain one, else nothing."""
    if stat.S_ISREG(mode):
        return ""
    what = "a symbolic link" if stat.S_ISLNK(mode) else "no plain file"
    return f"'{file}' is {what}, which trustlens never writes and does not follow"


def refuse_link(folder: Path) -> None:
    """Raise RunError if a folder of a run is a symbolic link."""
    if folder.is_symlink():
        raise RunError(
            f"'{folder}' is a symbolic link, which trustlens never writes within a run and does "
            "not follow; put the folder itself there"
        )


def _unreadable(folder: Path, error: OSError) -> RunError:
    return RunError(f"'{folder}' cannot be read ({error.strerror}); check its permissions")
