"""Reading a Parquet file of a run that may be damaged."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

import pyarrow as pa

from trustlens.errors import RunError
from trustlens.store.location import Location
from trustlens.store.remote_location import reason

_OF_DAMAGE: Final = (pa.ArrowException, OSError, KeyError, ValueError, IndexError)
"""What pyarrow, and the checks of what it has read, raise for a damaged file."""


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
        The file is not there, or not any more.
    RunError
        The file is damaged.
    """
    try:
        yield
    except (FileNotFoundError, RunError):
        raise
    except _OF_DAMAGE as error:
        what = "is damaged or not a table of trustlens"
        if path.is_remote:
            if not path.exists():
                raise FileNotFoundError(str(path)) from None
            what = f"could not be fetched whole, or {what}"
        raise RunError(f"'{path}' {what} ({reason(error)}); {remedy}") from None
