"""Repairing a run after its recording process died."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from trustlens.schema import TABLES
from trustlens.store.gaps import torn_bytes, with_missing_steps
from trustlens.store.layout import JOURNAL, OVERVIEW
from trustlens.store.location import LocalLocation
from trustlens.store.locking import RunLock
from trustlens.store.overview.builder import OverviewBuilder
from trustlens.store.overview.format import finest_level, is_level, remove_pieces_from
from trustlens.store.run_info import read_info, write_info
from trustlens.store.segments.leftovers import Leftover, seal_leftovers

_UNFINISHED: Final = re.compile(
    r"\.((run|\.uploaded)\.json|\d{6,18}(-\d{6,18})?\.parquet)\.tmp", re.ASCII
)
"""The names that ``temporary_name`` returns for a run's files."""


def repair(directory: Path) -> list[Leftover]:
    """Seal the journals of a process that died, and complete the overview.

    A run can be read and resumed without a repair. A second call finds nothing.

    Parameters
    ----------
    directory : Path
        The run.

    Returns
    -------
    list of Leftover
        One for each table whose journals held rows or an incomplete batch.

    Raises
    ------
    RunError
        If the directory holds no run.
    UsageError
        If the run is being recorded.
    """
    info = read_info(directory)
    lock = RunLock(directory)
    try:
        clear_unfinished(directory)
        noted = with_missing_steps(directory, info, torn_bytes(directory))
        if noted != info:  # before the journals, which show it, are removed
            write_info(directory, noted)
        found = [seal_leftovers(directory, table) for table in TABLES]
        found = [each for each in found if each.is_something]
        overview = OverviewBuilder(directory, finest_level(info))
        if (
            not overview.complete()
        ):  # a file that it needs was damaged, and removed: build all again
            remove_pieces_from(directory, 0)
            overview.complete()
        with suppress(OSError):  # it does not exist, or holds other files
            (directory / JOURNAL).rmdir()
        # Note it in run.json: the lock, the only other sign of an interrupted run, is released now.
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
                    (folder / name).unlink()  # a link too: writing would follow it
