"""Sealing what a process left that died while it recorded."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from trustlens.schema import TABLES
from trustlens.store.gaps import torn_bytes, torn_noted
from trustlens.store.layout import JOURNAL, OVERVIEW, journal_path, sealed_path
from trustlens.store.location import names_in
from trustlens.store.locking import RunLock
from trustlens.store.overview.builder import OverviewWriter
from trustlens.store.overview.format import finest_level, forget, is_level
from trustlens.store.reader import journal_numbers, read_whole, sealed_numbers
from trustlens.store.run_info import read_info, write_info
from trustlens.store.segments.sealed import write_sealed

_UNFINISHED: Final = re.compile(
    r"\.((run|\.uploaded)\.json|\d{6,18}(-\d{6,18})?\.parquet)\.tmp", re.ASCII
)
"""What ``temporary_name`` makes of the names of a run's files."""


@dataclass(frozen=True, slots=True)
class Left:
    """What was found of one table: rows that are sealed now, bytes of a batch that never ended."""

    table: str
    rows: int
    torn: int

    @property
    def is_something(self) -> bool:
        """Whether anything was found."""
        return self.rows > 0 or self.torn > 0


def repair(directory: Path) -> list[Left]:
    """Seal what a dead process left in a run, and take its journal away.

    A run can be read and resumed without. A second time it finds nothing.

    Parameters
    ----------
    directory : Path
        The run.

    Returns
    -------
    list of Left
        One a table of which something was left.

    Raises
    ------
    RunError
        It is no run.
    UsageError
        It is being recorded.
    """
    info = read_info(directory)
    lock = RunLock(directory)
    try:
        clear_unfinished(directory)
        noted = torn_noted(directory, info, torn_bytes(directory))
        if noted != info:  # before the journals go, which alone tell of it
            write_info(directory, noted)
        found = [left for table in TABLES if (left := seal_left(directory, table)).is_something]
        overview = OverviewWriter(directory, finest_level(info))
        if not overview.complete():  # some of what it is made of was taken away
            forget(directory, 0)
            overview.complete()
        with suppress(OSError):  # not there, or what is no journal lies in it
            (directory / JOURNAL).rmdir()
        # Of a dead process there is no sign but its lock, which goes now.
        if found or (info.closed is None and info.recording.repaired is None):
            now = datetime.now(UTC).isoformat()
            write_info(directory, noted.change_recording(repaired=now))
        return found
    finally:
        lock.release()


def seal_left(directory: Path, table: str, *, before: int | None = None) -> Left:
    """Seal the journals of one table; who calls has the run's lock.

    Parameters
    ----------
    directory : Path
        The run.
    table : str
        One of ``trustlens.schema.TABLES``.
    before : int, optional
        Only those of lower numbers.

    Raises
    ------
    OSError
        There is no room for it, or it cannot be written; the journals stay.
    """
    sealed = sealed_numbers(directory, table)
    found = torn = 0
    for number in sorted(journal_numbers(directory, table)):
        if before is not None and number >= before:
            break
        journal = journal_path(directory, table, number)
        if number not in sealed:
            rows, lost = read_whole(journal, table)
            if rows.num_rows:
                write_sealed(sealed_path(directory, table, number), table, rows)
            found, torn = found + rows.num_rows, torn + lost
        with suppress(OSError):  # a reader may hold it open: its rows are sealed
            journal.unlink()
    return Left(table, found, torn)


def clear_unfinished(directory: Path) -> None:
    """Take away files that never were finished, as the process died while it wrote them.

    What has other names or lies elsewhere is the user's own.
    """
    overview = directory / OVERVIEW
    levels = [overview / name for name in names_in(overview) if is_level(name)]
    for folder in (directory, *(directory / table for table in TABLES), *levels):
        for name in names_in(folder):
            if _UNFINISHED.fullmatch(name):
                with suppress(OSError):
                    (folder / name).unlink()  # a link too: it would be written through
