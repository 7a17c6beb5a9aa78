"""A directory on an object store, by whatever file system of Arrow's or fsspec's it has."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import Any

from trustlens.errors import MissingDependencyError, UsageError


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
        As the user calls it, without what stands behind a question mark.
    """

    filesystem: Any
    path: str
    address: str

    def __truediv__(self, name: str) -> RemotePlace:
        return RemotePlace(
            self.filesystem, posixpath.join(self.path, name), posixpath.join(self.address, name)
        )

    def __str__(self) -> str:
        return self.address

    @property
    def name(self) -> str:
        """The last part of its path."""
        return posixpath.basename(self.path)


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

    plain = address.split("?", maxsplit=1)[0].rstrip("/")
    try:
        filesystem, path = arrow_fs.FileSystem.from_uri(address)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        scheme = address.split("://", maxsplit=1)[0]
        if "nrecognized filesystem type" not in str(error):
            raise UsageError(f"'{plain}' cannot be opened ({error}); check the address") from None
        filesystem = arrow_fs.PyFileSystem(arrow_fs.FSSpecHandler(_of_fsspec(scheme, plain)))
        path = plain.split("://", 1)[1]
    except OSError as error:
        raise UsageError(
            f"'{plain}' cannot be opened ({error}); check the address and your credentials"
        ) from None
    return RemotePlace(filesystem, path.rstrip("/"), plain)


def _of_fsspec(scheme: str, address: str) -> Any:
    try:
        import fsspec  # noqa: PLC0415 — not needed for what Arrow has itself

        return fsspec.filesystem(scheme)
    except ModuleNotFoundError:
        raise MissingDependencyError(f"'{address}'", "fsspec", "remote") from None
    except ImportError as error:
        raise UsageError(f"'{address}' cannot be opened: {error}") from None
    except ValueError:
        raise UsageError(
            f"'{address}' cannot be opened: neither Arrow nor fsspec knows '{scheme}://'; use s3, "
            "gs, or one that fsspec lists"
        ) from None
