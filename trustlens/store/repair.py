"""Repairing a run whose recording process died before it closed the run."""

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
"""The names of temporary files that :func:`atomic_write` leaves if the process dies."""


def repair(directory: Path) -> list[Leftover]:
    """Seal the journals that a dead process left in a run, and complete the overview.

    A run can be read and resumed without a repair. If the run was repaired before, an empty list is
    returned.

    Parameters
    ----------
    directory : Path
        The directory of the run.

    Returns
    -------
    list of Leftover
        One item for each table whose journals held rows or an incomplete batch. The item has the
        number of rows that were sealed.

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
        if noted != info:  # before the journals, which show these steps, are removed
            write_info(directory, noted)
        found = [seal_leftovers(directory, table) for table in TABLES]
        found = [each for each in found if each.is_something]
        overview = OverviewBuilder(directory, finest_level(info))
        if not overview.complete():  # a damaged overview file was removed: build all of them again
            remove_pieces_from(directory, 0)
            overview.complete()
        with suppress(OSError):  # the folder does not exist, or holds other files
            (directory / JOURNAL).rmdir()
        # Write the repair into run.json: otherwise nothing would show that the recording was
        # interrupted, since the lock file is removed now.
        if found or (info.closed is None and info.recording.repaired is None):
            now = datetime.now(UTC).isoformat()
            write_info(directory, noted.change_recording(repaired=now))
        return found
    finally:
        lock.release()


def clear_unfinished(directory: Path) -> None:
    """Remove the temporary files of a process that died while it wrote them.

    Only files with the names of such temporary files are removed, and only from the folders of the
    run. All other files belong to the user.
    """
    overview = directory / OVERVIEW
    levels = [overview / name for name in LocalLocation(overview).names() if is_level(name)]
    for folder in (directory, *(directory / table for table in TABLES), *levels):
        for name in LocalLocation(folder).names():
            if _UNFINISHED.fullmatch(name):
                with suppress(OSError):
                    (folder / name).unlink()  # links too: a later write would follow them
