"""Where runs are stored: the protocol `Location`, and `LocalLocation` for files on this machine.

A run consists of regular files and folders. Nothing else is opened: a symbolic link could lead out
of the run, and reading a pipe could block forever.
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
"""Maximum size of a ``run.json`` in bytes. For a run with 10,000 layers, ``run.json`` has 2 MB."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a listing says about a file or folder.

    If two listings give equal entries for a file, the file has not changed in between.

    Attributes
    ----------
    name : str
        The name within the listed folder.
    size : int
        Size in bytes.
    changed : int
        Time of the last change, in nanoseconds since 1970; 0 if the store does not report it. Then
        a file may change without a change of its entry: nothing read from it may be cached.
    is_plain : bool
        Whether this is a regular file.
    """

    name: str
    size: int
    changed: int
    is_plain: bool


class Location(Protocol):
    """A file or folder of a run, or a folder that holds runs; it need not exist.

    Methods that read raise FileNotFoundError if the file does not exist, and `RunError` for other
    errors, unless they say otherwise.
    """

    @property
    def name(self) -> str:
        """The last part of the path."""
        ...

    @property
    def is_remote(self) -> bool:
        """Whether the location is on an object store. Requests to a store are slow."""
        ...

    @property
    def filesystem(self) -> Any:
        """The ``pyarrow.fs.FileSystem`` that the file or folder is on."""
        ...

    @property
    def filesystem_path(self) -> str:
        """The path on :attr:`filesystem`."""
        ...

    @property
    def whole_address(self) -> str:
        """The text that names this location on the command line: a path, or a complete address."""
        ...

    @property
    def identity(self) -> str:
        """A text that is unique to this location."""
        ...

    def __truediv__(self, name: str) -> Location:
        """Return the location of a file or folder in this folder, by its name or relative path."""
        ...

    def entries(self) -> list[Entry]:
        """Return the entries of this folder, in any order; empty if the folder does not exist."""
        ...

    def names(self) -> list[str]:
        """Return the names of the entries; faster than :meth:`entries` for a local folder."""
        ...

    def exists(self) -> bool:
        """Return whether there is a file or a folder here."""
        ...

    def entry(self) -> Entry | None:
        """Return an `Entry` with the present size and time of change of this file.

        None if the file does not exist or cannot be examined, or if the store does not report times
        of change.
        """
        ...

    def names_changed(self) -> int | None:
        """Return when an entry was last added to, removed from or renamed in this folder.

        The time is in nanoseconds since 1970; None if it is not known.
        """
        ...

    def open(self, entry: Entry | None = None) -> pa.NativeFile:
        """Open this file for reading.

        Parameters
        ----------
        entry : Entry, optional
            The entry from an earlier listing. If the file was replaced since that listing,
            FileNotFoundError is raised. By default this is not checked.
        """
        ...

    def read_bytes(self) -> bytes:
        """Return the content of this file.

        Raises
        ------
        OSError
            If the file does not exist, or cannot be read.
        RunError
            If it has more than `TEXT_LIMIT` bytes, or is not a regular file.
        """
        ...

    def reading(self) -> AbstractContextManager[None]:
        """Return a context manager for a ``with`` block that reads this file after opening it.

        In the block, an error of an object store is raised as FileNotFoundError or `RunError`.
        """
        ...


@dataclass(frozen=True)
class LocalLocation:
    """A file or folder on this machine; it need not exist.

    Attributes
    ----------
    path : Path
        The path, absolute or relative.
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
        """The last part of the absolute path."""
        return self.path.absolute().name

    @property
    def is_remote(self) -> bool:
        """Always False: the location is on this machine."""
        return False

    @property
    def filesystem(self) -> Any:
        """Arrow's local file system."""
        from pyarrow.fs import LocalFileSystem  # noqa: PLC0415 — slow to import, rarely needed

        return LocalFileSystem()

    @property
    def filesystem_path(self) -> str:
        """The absolute path."""
        return str(self.path.absolute())

    @property
    def identity(self) -> str:
        """The absolute path."""
        return self.filesystem_path

    @property
    def whole_address(self) -> str:
        """The path, as it was given."""
        return str(self.path)

    def entries(self) -> list[Entry]:
        """Return the entries; RunError if the folder is a symbolic link or cannot be read."""
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
        """Return the names of the entries; RunError if the folder is a link or cannot be read."""
        refuse_link(self.path)
        try:
            return os.listdir(self.path)  # noqa: PTH208 — three times as fast as pathlib
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise _unreadable(self.path, error) from None

    def exists(self) -> bool:
        """Return whether there is a file or a folder here."""
        return self.path.exists()

    def entry(self) -> Entry | None:
        """Return this file's entry as of now; None if the file is missing or cannot be examined."""
        try:
            return _entry(self.path.name, self.path.lstat())
        except OSError:
            return None

    def names_changed(self) -> int | None:
        """Return the folder's time of modification in ns since 1970; None if it is unknown."""
        try:
            return self.path.stat().st_mtime_ns
        except OSError:
            return None

    def open(self, entry: Entry | None = None) -> pa.NativeFile:
        """Open this file for reading; RunError if it is not a regular file."""
        self._check_plain()
        # Not Python's open: if one of Arrow's threads frees a Python file while the interpreter
        # exits, Python aborts.
        opened = pa.OSFile(str(self.path), "rb")
        if entry is not None:
            now = self.path.lstat()  # after opening: later changes of the path do no harm
            if (now.st_size, now.st_mtime_ns) != (entry.size, entry.changed):
                opened.close()
                raise FileNotFoundError(self.path)
        return opened

    def read_bytes(self) -> bytes:
        """Return the content of this file; RunError if it is not a regular file, or too large."""
        check_small(self, self._check_plain())
        return self.path.read_bytes()

    @contextmanager
    def reading(self) -> Generator[None]:
        """Return a context manager that does nothing: errors are raised as they are."""
        yield

    def _check_plain(self) -> int:
        status = self.path.lstat()
        if wrong := not_plain(self.path, status.st_mode):
            raise RunError(f"{wrong}; replace it by the file itself")
        return status.st_size


def _entry(name: str, status: os.stat_result) -> Entry:
    return Entry(name, status.st_size, status.st_mtime_ns, stat.S_ISREG(status.st_mode))


def check_small(file: object, size: int) -> None:
    """Raise RunError if a file is larger than a ``run.json`` may be."""
    if size > TEXT_LIMIT:
        raise RunError(f"'{file}' has {size:,} bytes, more than trustlens writes; restore it")


def not_plain(file: Path, mode: int) -> str:
    """Return an error message if ``mode`` is not that of a regular file; else an empty text."""
    if stat.S_ISREG(mode):
        return ""
    what = "a symbolic link" if stat.S_ISLNK(mode) else "not a regular file"
    return f"'{file}' is {what}; trustlens writes regular files only and opens nothing else"


def refuse_link(folder: Path) -> None:
    """Raise RunError if a folder of a run is a symbolic link."""
    if folder.is_symlink():
        raise RunError(
            f"'{folder}' is a symbolic link, which trustlens never writes within a run and does "
            "not follow; replace it by the folder itself"
        )


def _unreadable(folder: Path, error: OSError) -> RunError:
    return RunError(f"'{folder}' cannot be read ({error.strerror}); check its permissions")
