"""Reading a Parquet file of a run that may be damaged."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

import pyarrow as pa

from trustlens.errors import RunError
from trustlens.store.location import Location
from trustlens.store.remote_location import reason

_DAMAGE_ERRORS: Final = (pa.ArrowException, OSError, KeyError, ValueError, IndexError)
"""Errors that pyarrow, and the checks of its results, raise for a damaged file."""


@contextmanager
def damage_reported(path: Location, *, remedy: str) -> Generator[None]:
    """Turn the errors of reading a damaged file into a RunError that names it.

    Parameters
    ----------
    path : Location
        The file.
    remedy : str
        What the user can do about it.

    Raises
    ------
    FileNotFoundError
        If the file does not exist, or was removed.
    RunError
        If the file is damaged.
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
