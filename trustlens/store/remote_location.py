"""A directory on an object store, by whatever file system of Arrow's or fsspec's it has."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from trustlens.errors import MissingDependencyError, UsageError

_SECRET: Final = ("secret", "token", "key", "sig", "password")
"""What stands in the name of an option that is not to be shown."""

_SERVER: Final = ("endpoint_override", "blob_storage_authority", "dfs_storage_authority")
"""The options of Arrow's file systems that say on which server a store is."""


@dataclass(frozen=True)
class RemotePlace:
    """A folder or a file that is not on this machine.

    Attributes
    ----------
    filesystem : pyarrow.fs.FileSystem
        Where it is.
    path : str
        Which it is there.
    address : str
        As the user calls it, without secrets and what stands behind a question mark.
    options : tuple of (str, str)
        What stands there, without secrets.
    """

    filesystem: Any
    path: str
    address: str
    options: tuple[tuple[str, str], ...] = ()

    def __truediv__(self, name: str) -> RemotePlace:
        return replace(
            self, path=posixpath.join(self.path, name), address=posixpath.join(self.address, name)
        )

    def __str__(self) -> str:
        return self.address

    @property
    def name(self) -> str:
        """The last part of its path."""
        return posixpath.basename(self.path)

    @property
    def whole_address(self) -> str:
        """The address as a command takes it."""
        options = urlencode(self.options, safe=":/")
        return f"{self.address}?{options}" if options else self.address

    @property
    def identity(self) -> str:
        """What no two places have in common."""
        server = [value for name, value in self.options if name in _SERVER]
        return "?".join([self.address, *server])

    def put(self, name: str, data: bytes) -> None:
        """Put a file into this folder, whole.

        Raises
        ------
        OSError
            It cannot be written.
        """
        target = (self / name).path
        try:
            stream = self.filesystem.open_output_stream(target)
        except FileNotFoundError:  # it has folders of its own, as object stores do not
            self.filesystem.create_dir(posixpath.dirname(target), recursive=True)
            stream = self.filesystem.open_output_stream(target)
        with stream:
            stream.write(data)


def reason(error: BaseException) -> str:
    """Return the first line of what an error of a file system says."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def remote_place(address: str) -> RemotePlace:
    """Return what an address such as ``s3://bucket/runs/lamb`` means.

    Options of Arrow's file systems stand behind a question mark, as in
    ``s3://bucket/runs?endpoint_override=localhost:9000&scheme=http``.

    Raises
    ------
    UsageError
        There is no such file system, or it cannot be made.
    MissingDependencyError
        It is none of Arrow's, and fsspec, or what that needs for it, is not installed.
    """
    import pyarrow as pa  # noqa: PLC0415 — most runs lie on this machine
    import pyarrow.fs as arrow_fs  # noqa: PLC0415

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
        filesystem = arrow_fs.PyFileSystem(arrow_fs.FSSpecHandler(_of_fsspec(scheme, plain)))
        path = before.rstrip("/").split("://", 1)[1]
    except OSError as error:
        raise UsageError(
            f"'{plain}' cannot be opened ({reason(error)}); check the address and your credentials"
        ) from None
    if not path.strip("/"):
        raise UsageError(f"'{address}' names no place; give one such as 's3://bucket/runs/lamb'")
    return RemotePlace(filesystem, path.rstrip("/"), plain, options)


def _of_fsspec(scheme: str, address: str) -> Any:
    try:
        import fsspec  # noqa: PLC0415 — not needed for what Arrow has itself

        return fsspec.filesystem(scheme)
    except ModuleNotFoundError:
        raise MissingDependencyError(f"'{address}'", "fsspec", "remote") from None
    except ImportError as error:
        raise UsageError(f"'{address}' cannot be opened: {reason(error)}") from None
    except ValueError:
        raise UsageError(
            f"'{address}' cannot be opened: neither Arrow nor fsspec knows '{scheme}://'; use s3, "
            "gs, or one that fsspec lists"
        ) from None
