"""Locations on an object store, through a file system of Arrow or fsspec."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

import pyarrow as pa

from trustlens.errors import MissingDependencyError, RunError, UsageError
from trustlens.store.location import Entry, Location, check_small

_SECRET: Final = ("secret", "token", "key", "sig", "password")
"""If the name of an option contains one of these words, the option is secret and never shown."""

_SERVER: Final = ("endpoint_override", "blob_storage_authority", "dfs_storage_authority")
"""The options of an address that say on which server the store is."""


@dataclass(frozen=True)
class RemoteLocation:
    """A file or folder on an object store; it need not exist.

    Attributes
    ----------
    filesystem : pyarrow.fs.FileSystem
        The file system of the store.
    filesystem_path : str
        The path on ``filesystem``.
    address : str
        The address as the user gave it, without secrets and options.
    options : tuple of (str, str)
        Names and values of the options, which follow a question mark in the address the user gave.
        Options that are secrets are left out.
    """

    filesystem: Any
    filesystem_path: str
    address: str
    options: tuple[tuple[str, str], ...] = ()

    def __truediv__(self, name: str) -> RemoteLocation:
        return replace(
            self,
            filesystem_path=posixpath.join(self.filesystem_path, name),
            address=posixpath.join(self.address, name),
        )

    def __str__(self) -> str:
        return self.address

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.filesystem_path)

    @property
    def is_remote(self) -> bool:
        """Always True: the location is on an object store."""
        return True

    @property
    def whole_address(self) -> str:
        """The text that names this location on the command line: the address with its options."""
        options = urlencode(self.options, safe=":/")
        return f"{self.address}?{options}" if options else self.address

    @property
    def identity(self) -> str:
        """The address and the server, which together are unique to this location."""
        server = [value for name, value in self.options if name in _SERVER]
        return "?".join([self.address, *server])

    def entries(self) -> list[Entry]:
        """Return the entries of this folder; RunError if the store does not answer."""
        from pyarrow.fs import FileSelector  # noqa: PLC0415 — slow to import; most runs are local

        selector = FileSelector(self.filesystem_path, allow_not_found=True)
        with self._errors_reported():
            found = self.filesystem.get_file_info(selector)
        return [_entry(info) for info in found]

    def names(self) -> list[str]:
        """Return the names in this folder; RunError if the store does not answer."""
        return [entry.name for entry in self.entries()]

    def exists(self) -> bool:
        """Return whether a file or a folder is here; RunError if the store does not answer."""
        return self._info().type.name != "NotFound"

    def entry(self) -> Entry | None:
        """Return this file's present entry; None if it does not exist or has no time of change."""
        info = self._info()
        return _entry(info) if info.type.name == "File" and info.mtime_ns else None

    def names_changed(self) -> int | None:
        """Return None: object stores do not report when a folder changed."""
        return None

    def open(self, entry: Entry | None = None) -> pa.NativeFile:
        """Open this file for reading; RunError if the store does not answer."""
        with self._errors_reported():
            opened = self.filesystem.open_input_file(self.filesystem_path)
            if entry is not None and opened.size() != entry.size:
                opened.close()
                raise FileNotFoundError(str(self))
            return opened

    def read_bytes(self) -> bytes:
        """Return the content of this file; RunError if it is too large or cannot be downloaded."""
        with self._errors_reported(), self.open() as opened:
            check_small(self, opened.size())
            return opened.read()

    @contextmanager
    def reading(self) -> Generator[None]:
        """Return a context manager for a ``with`` block that reads this file after opening it.

        Raises
        ------
        FileNotFoundError
            If reading fails because the file does not exist any more.
        RunError
            If reading fails for another reason.
        """
        try:
            yield
        except OSError as error:
            if not self.exists():
                raise FileNotFoundError(str(self)) from None
            raise self._read_error(error) from None

    def put(self, name: str, data: bytes) -> None:
        """Write a file into this folder; if it exists, replace its whole content.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        target = (self / name).filesystem_path
        try:
            stream = self.filesystem.open_output_stream(target)
        except FileNotFoundError:  # unlike most object stores, this one has folders
            self.filesystem.create_dir(posixpath.dirname(target), recursive=True)
            stream = self.filesystem.open_output_stream(target)
        with stream:
            stream.write(data)

    def delete(self, name: str) -> None:
        """Delete a file in this folder; FileNotFoundError if the file does not exist."""
        self.filesystem.delete_file((self / name).filesystem_path)

    def _info(self) -> Any:
        with self._errors_reported():
            return self.filesystem.get_file_info(self.filesystem_path)

    @contextmanager
    def _errors_reported(self) -> Generator[None]:
        try:
            yield
        except (FileNotFoundError, RunError):
            raise
        except (OSError, pa.ArrowException) as error:
            raise self._read_error(error) from None

    def _read_error(self, error: Exception) -> RunError:
        return RunError(
            f"'{self}' cannot be read ({reason(error)}); check the address, your credentials and "
            "the network"
        )


def _entry(info: Any) -> Entry:
    return Entry(info.base_name, info.size or 0, info.mtime_ns or 0, info.type.name == "File")


def remote_of(location: Location) -> RemoteLocation | None:
    """Return ``location`` itself if it is on an object store; None if it is on this machine."""
    return location if isinstance(location, RemoteLocation) else None


def reason(error: BaseException) -> str:
    """Return the first line of an error's message; the error's type if it has no message."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def remote_location(address: str) -> RemoteLocation:
    """Return the location of an address such as ``s3://bucket/runs/lamb``.

    Options for Arrow's file system may follow a question mark, as in
    ``s3://bucket/runs?endpoint_override=localhost:9000&scheme=http``.

    Raises
    ------
    UsageError
        If neither Arrow nor fsspec knows the kind of the store; if the address has no path; or if
        the store cannot be opened, for example because fsspec needs a package that is missing.
    MissingDependencyError
        If Arrow does not know the kind of the store, and fsspec is not installed.
    """
    import pyarrow.fs as arrow_fs  # noqa: PLC0415 — slow to import; most runs are local

    before, _, query = address.partition("?")
    plain = re.sub(r"://[^/@]*:[^/@]*@", "://", before.rstrip("/"))
    options = tuple(
        (name, value)
        for name, value in parse_qsl(query)
        if not any(each in name.lower() for each in _SECRET)
    )
    try:
        filesystem, path = arrow_fs.FileSystem.from_uri(address)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        scheme = address.split("://", maxsplit=1)[0]
        if "nrecognized filesystem type" not in str(error):
            raise UsageError(
                f"'{plain}' cannot be opened ({reason(error)}); check the address"
            ) from None
        filesystem = arrow_fs.PyFileSystem(
            arrow_fs.FSSpecHandler(_fsspec_filesystem(scheme, plain))
        )
        path = before.rstrip("/").split("://", 1)[1]
    except ImportError as error:  # Arrow passes hf:// to fsspec, which needs another package
        raise UsageError(f"'{plain}' cannot be opened: {reason(error)}") from None
    except OSError as error:
        raise UsageError(
            f"'{plain}' cannot be opened ({reason(error)}); check the address and your credentials"
        ) from None
    if not path.strip("/"):
        raise UsageError(
            f"'{address}' has no path; give an address such as 's3://bucket/runs/lamb'"
        )
    return RemoteLocation(filesystem, path.rstrip("/"), plain, options)


def _fsspec_filesystem(scheme: str, address: str) -> Any:
    try:
        import fsspec  # noqa: PLC0415 — only for stores unknown to Arrow

        return fsspec.filesystem(scheme)
    except ModuleNotFoundError:
        raise MissingDependencyError(f"'{address}'", "fsspec", "remote") from None
    except ImportError as error:
        raise UsageError(f"'{address}' cannot be opened: {reason(error)}") from None
    except ValueError:
        raise UsageError(
            f"'{address}' cannot be opened: neither Arrow nor fsspec knows '{scheme}://'; use s3, "
            "gs, or another scheme that fsspec supports"
        ) from None
