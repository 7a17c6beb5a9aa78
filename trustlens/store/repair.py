"""Recovering a run whose process died while it recorded."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from trustlens.schema import TABLES
from trustlens.store.gaps import torn_bytes, torn_noted
from trustlens.store.layout import JOURNAL, OVERVIEW
from trustlens.store.location import LocalLocation
from trustlens.store.locking import RunLock
from trustlens.store.overview.builder import OverviewWriter
from trustlens.store.overview.format import finest_level, forget, is_level
from trustlens.store.run_info import read_info, write_info
from trustlens.store.segments.leftovers import Leftover, seal_leftovers

_UNFINISHED: Final = re.compile(
    r"\.((run|\.uploaded)\.json|\d{6,18}(-\d{6,18})?\.parquet)\.tmp", re.ASCII
)
"""Names that ``temporary_name`` gives to a run's files."""


def repair(directory: Path) -> list[Leftover]:
    """Seal the journals of a process that died, and complete the overview.

    A run can be read and resumed without that. A second call finds nothing.

    Parameters
    ----------
    directory : Path
        The run.

    Returns
    -------
    list of Leftover
        One for each table with journals that held something.

    Raises
    ------
    RunError
        The directory holds no run.
    UsageError
        The run is being recorded.
    """
    info = read_info(directory)
    lock = RunLock(directory)
    try:
        clear_unfinished(directory)
        noted = torn_noted(directory, info, torn_bytes(directory))
        if noted != info:  # before the journals go, which alone tell of it
            write_info(directory, noted)
        found = [seal_leftovers(directory, table) for table in TABLES]
        found = [each for each in found if each.is_something]
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


def clear_unfinished(directory: Path) -> None:
    """Remove temporary files of a process that died while it wrote them.

    Files of other names, or elsewhere, belong to the user.
    """
    overview = directory / OVERVIEW
    levels = [overview / name for name in LocalLocation(overview).names() if is_level(name)]
    for folder in (directory, *(directory / table for table in TABLES), *levels):
        for name in LocalLocation(folder).names():
            if _UNFINISHED.fullmatch(name):
                with suppress(OSError):
                    (folder / name).unlink()  # a link too: it would be written through
