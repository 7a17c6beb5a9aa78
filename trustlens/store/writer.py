"""Writing a run: rows go to journals first, and to sealed segments when there are enough rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Final

import pyarrow as pa

from trustlens.errors import RunError, UsageError
from trustlens.schema import TABLES
from trustlens.store.arrow import numbers
from trustlens.store.gaps import torn_bytes, with_missing_steps
from trustlens.store.layout import JOURNAL, REPLACED, RUN_FILE
from trustlens.store.location import refuse_link
from trustlens.store.locking import RunLock
from trustlens.store.overview.builder import OverviewBuilder
from trustlens.store.overview.format import finest_level
from trustlens.store.reader import RunFiles
from trustlens.store.repair import clear_unfinished
from trustlens.store.run_info import RunInfo, read_info, write_info
from trustlens.store.segments.precision import round_floats
from trustlens.store.table_writer import BY_LAYER, TableWriter, is_disk_full

_log: Final = logging.getLogger("trustlens")

SEGMENT_ROWS: Final = 131_072
"""Number of rows of a segment: enough to compress well, few enough to hold in memory."""


class RunWriter:
    """Writes the files of one run, and holds the run's lock until :meth:`close`.

    Only :meth:`change_info` may be called from any thread, the other methods from one thread only.
    While the disk is full, rows are dropped; a warning is logged once, and ``run.json`` lists the
    steps of the dropped rows.

    Parameters
    ----------
    directory : Path
        The directory of the run; created if it does not exist.
    info : RunInfo
        The contents of ``run.json`` if the run is new.
    resume : callable, optional
        If given, a run that the directory holds is resumed. The function is called with the
        contents of the ``run.json`` of that run, and returns the new contents.
    segment_rows : int, optional
        Number of rows of a segment; `SEGMENT_ROWS` by default.
    fsync : bool
        Whether :meth:`flush` waits until the rows are on the disk.
    precision : int, optional
        Number of mantissa bits to which floats of the table ``layers`` are rounded; by default they
        are not rounded.

    Raises
    ------
    UsageError
        If the directory holds a run and ``resume`` is not given, another writer is writing the run,
        or the directory cannot be created or written.
    RunError
        If the run to resume cannot be read.
    """

    def __init__(
        self,
        directory: Path,
        info: RunInfo,
        *,
        resume: Callable[[RunInfo], RunInfo] | None = None,
        segment_rows: int | None = None,
        fsync: bool = False,
        precision: int | None = None,
    ) -> None:
        self.directory = directory
        self.info = info
        self._info_lock = Lock()
        self._info_is_due = False
        self._fsync = fsync
        self._precision = precision
        self._gaps: dict[str, tuple[int, int]] = {}
        self._warned = False
        self._lock = _lock_directory(directory)
        try:
            holds_run = _check_holds_run(directory, resumable=resume is not None)
            clear_unfinished(directory)
            if holds_run and resume is not None:
                torn = torn_bytes(directory)  # before the journals are sealed and removed
                self.info = resume(with_missing_steps(directory, read_info(directory), torn))
            write_info(directory, self.info)
            self._overview = OverviewBuilder(directory, finest_level(self.info))
            rows = SEGMENT_ROWS if segment_rows is None else segment_rows
            self._tables = {name: TableWriter(directory, name, rows) for name in TABLES}
        except OSError as error:
            self._lock.release()
            raise _unwritable(directory, error) from None
        except BaseException:
            self._lock.release()
            raise

    def append(self, table: str, rows: pa.Table) -> None:
        """Append rows to a table. Readers see the rows after the next :meth:`flush`.

        Parameters
        ----------
        table : str
            One of ``trustlens.schema.TABLES``.
        rows : pyarrow.Table
            The rows, with the table's schema.

        Raises
        ------
        OSError
            If the rows cannot be written for another reason than a full disk.
        """
        self._lock.check()
        if table == "layers" and self._precision is not None:
            rows = round_floats(rows, self._precision)
        if rows.num_rows and table in BY_LAYER and not self._write_info_if_due():
            self._note_dropped(table, rows)  # run.json may not list the layers of these rows
            return
        try:
            sealed = self._tables[table].append(rows)
        except OSError as error:
            if not is_disk_full(error):
                raise
            self._note_dropped(table, rows)
            self._warn(error)
            return
        if table in self._gaps and rows.num_rows:
            gap = self._gaps.pop(table)
            self.change_info(lambda info: _with_gaps(info, [gap]))
        if sealed and table == "layers":
            self._complete_overview(sealed)

    def change_info(self, change: Callable[[RunInfo], RunInfo]) -> None:
        """Call ``change`` with the contents of ``run.json``, and write the result. Thread-safe.

        If the disk is full, the new ``run.json`` is written at a later flush.
        """
        with self._info_lock:
            info = change(self.info)
            if info != self.info:
                self.info = info
                self._write_info()

    def flush(self) -> None:
        """Pass everything appended so far to the operating system, so that readers see it."""
        for table in self._tables.values():
            try:
                table.flush(sync=self._fsync)
            except OSError as error:
                if not is_disk_full(error):
                    raise
                self._warn(error)
        self._write_info_if_due()

    def rollback(self, step: int, layers: Mapping[str, int]) -> Path | None:
        """Remove the rows after ``step``, so that the training can record these steps again.

        Segments with such rows are rewritten. Copies of the segments from before the rollback are
        kept in a folder that readers do not read. The rows recorded again go to segments with new
        numbers, so that a concurrent reader never sees a row twice.

        The list of missing steps in ``run.json`` is updated: steps after ``step`` are removed. If
        the last recorded step is before ``step``, the steps in between are added.

        Parameters
        ----------
        step : int
            The last step whose rows are kept.
        layers : mapping of str to int
            Layers with another last step than ``step``: by layer name, the last step that is kept.

        Returns
        -------
        Path or None
            The folder that has the copies; None if no segment was rewritten.
        """
        self._lock.check()
        replaced = self.directory / REPLACED
        refuse_link(replaced)
        names = [entry.name for entry in replaced.iterdir()] if replaced.exists() else []
        numbers = [int(name) for name in names if name.isdecimal()]
        keep = replaced / f"{max(numbers, default=0) + 1:06d}"
        # The table "steps" first: if the process dies after that, the run already ends at `step`.
        for name in sorted(TABLES, key=lambda name: name != "steps"):
            self._tables[name].rollback(step, layers, keep / name)
        # A new builder: the old one still lists overview files that were just removed.
        self._overview = OverviewBuilder(self.directory, finest_level(self.info))
        self._update_missing(step)
        return keep if keep.exists() else None

    def close(self, info: RunInfo) -> None:
        """Seal the remaining rows, write ``info`` as the final ``run.json``, and release the lock.

        Raises
        ------
        OSError
            If not everything could be sealed or written. Rows appended before can still be read.
        """
        with ExitStack() as each:  # after an error in one callback, the others still run
            each.callback(self._lock.release)
            for table in self._tables.values():
                each.callback(table.release)
            self._lock.check()
            each.callback(self._finish, info)
            for table in self._tables.values():
                each.callback(self._close_table, table)

    def _close_table(self, table: TableWriter) -> None:
        try:
            table.close()
        except OSError as error:
            if not is_disk_full(error):
                raise
            self._warn(error)

    def _finish(self, info: RunInfo) -> None:
        self._complete_overview()
        with self._info_lock:
            # The missing steps are from `self.info`: `info` may be from before a rollback.
            recording = info.recording.with_missing_of(self.info.recording)
            self.info = _with_gaps(replace(info, recording=recording), self._gaps.values())
            self._write_info()
        with suppress(OSError):  # the folder does not exist, or still has journals
            (self.directory / JOURNAL).rmdir()

    def _note_dropped(self, table: str, rows: pa.Table) -> None:
        step = numbers(rows["step"])
        first, last = int(step.min()), int(step.max())
        before = self._gaps.get(table, (first, last))
        self._gaps[table] = (min(first, before[0]), max(last, before[1]))

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            _log.warning(
                "trustlens: there is no room to write to '%s' (%s); until space is freed, "
                "nothing is recorded; the training continues",
                self.directory,
                error.strerror or error,
            )

    def _update_missing(self, step: int) -> None:
        # Called after the rows were removed: if the process dies before this, too many steps are
        # listed as missing, never too few.
        self._gaps = {
            table: (first, min(end, step))
            for table, (first, end) in self._gaps.items()
            if first <= step
        }
        _, recorded = RunFiles(self.directory).span("steps") or (0, 0)
        last = max([recorded, *(end for _, end in self._gaps.values())])
        passed_over = [(last + 1, step)] if 0 < last < step else []

        def change(info: RunInfo) -> RunInfo:
            kept = info.recording.missing_up_to(step)
            return replace(info, recording=kept.with_missing(passed_over=passed_over))

        self.change_info(change)

    def _write_info_if_due(self) -> bool:
        """Write ``run.json`` if the last attempt failed; return whether it is up to date now."""
        if self._info_is_due:
            with self._info_lock:
                self._write_info()
        return not self._info_is_due

    def _write_info(self) -> None:
        self._lock.check()
        try:
            write_info(self.directory, self.info)
        except OSError as error:
            if not is_disk_full(error):
                raise
            self._info_is_due = True
            self._warn(error)
        else:
            self._info_is_due = False

    def _complete_overview(self, sealed: Mapping[int, pa.Table] = MappingProxyType({})) -> None:
        # A few segments per call: for a long run without an overview, adding all segments at once
        # would delay the recording.
        try:
            self._overview.complete(limit=8, just_sealed=sealed)
        except OSError as error:
            if not is_disk_full(error):
                raise
        except RunError as error:  # a file is damaged: reading it raises an error
            _log.info("trustlens: the overview of '%s' is not complete (%s)", self.directory, error)


def _with_gaps(info: RunInfo, gaps: Iterable[tuple[int, int]]) -> RunInfo:
    return replace(info, recording=info.recording.with_missing(gaps=gaps))


def _lock_directory(directory: Path) -> RunLock:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return RunLock(directory)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(
            f"'{directory}' is a file, or is below a file; give a directory to record into"
        ) from None
    except OSError as error:
        raise _unwritable(directory, error) from None


def _check_holds_run(directory: Path, *, resumable: bool) -> bool:
    present = {entry.name for entry in directory.iterdir()}
    # Tables without a run.json count too: their rows would be read together with the new rows.
    old = present.intersection((RUN_FILE, JOURNAL, *TABLES))
    if old and not (resumable and RUN_FILE in old):
        raise UsageError(
            f"'{directory}' already holds a run ({', '.join(sorted(old))}); give resume=True "
            "to resume it, record into another directory, or remove it first"
        )
    return bool(old)


def _unwritable(directory: Path, error: OSError) -> UsageError:
    return UsageError(
        f"'{directory}' cannot be written ({error.strerror or error}); "
        "choose a directory that you have permission to write to"
    )
