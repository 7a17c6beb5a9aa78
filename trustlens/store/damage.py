"""Reporting a damaged Parquet file of a run as an error that names the file."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

import pyarrow as pa

from trustlens.errors import RunError
from trustlens.store.location import Location
from trustlens.store.remote_location import reason

_DAMAGE_ERRORS: Final = (pa.ArrowException, OSError, KeyError, ValueError, IndexError)
"""The errors raised for a damaged file, by pyarrow or by a check of the rows that were read."""


@contextmanager
def damage_reported(path: Location, *, remedy: str) -> Generator[None]:
    """Turn errors that pyarrow raises for a damaged file into a RunError that names the file.

    Parameters
    ----------
    path : Location
        The file that is read within the ``with`` block.
    remedy : str
        What the user can do about the damaged file. This is the end of the error message.

    Raises
    ------
    FileNotFoundError
        If the file does not exist, or was removed while it was read.
    RunError
        If the file is damaged, or could not be downloaded.
    """
    try:
        yield
    except (FileNotFoundError, RunError):
        raise
    except _DAMAGE_ERRORS as error:
        what = "is damaged or not a table of trustlens"
        if path.is_remote:
            if not path.exists():
                raise FileNotFoundError(str(path)) from None
            what = f"could not be downloaded completely, or {what}"
        raise RunError(f"'{path}' {what} ({reason(error)}); {remedy}") from None
