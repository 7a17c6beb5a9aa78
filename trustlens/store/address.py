"""Turning a path or an address into a `Location`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias, cast

from trustlens.store.location import LocalLocation, Location
from trustlens.store.remote_location import RemoteLocation, remote_location

Address: TypeAlias = str | os.PathLike[str] | Location
"""Where a run is stored: a path, an address such as ``s3://bucket/run``, or a `Location`."""


def is_address(value: object) -> bool:
    """Return whether a value is an `Address` that is not empty."""
    if isinstance(value, (LocalLocation, RemoteLocation)):
        return True
    return isinstance(value, (str, os.PathLike)) and os.fspath(value) not in ("", "file://")


def locate(address: Address) -> Location:
    """Return the `Location` that a path or an address names; return a `Location` unchanged.

    Raises
    ------
    UsageError, MissingDependencyError
        If the address cannot be opened; the message says why.
    """
    if isinstance(address, (LocalLocation, RemoteLocation)):
        return address
    text = os.fspath(cast("str | os.PathLike[str]", address))
    if "://" not in text:
        return LocalLocation(Path(text))
    if text.startswith("file://"):
        return LocalLocation(Path(text.removeprefix("file://")))
    return remote_location(text)
