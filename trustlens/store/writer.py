"""Writing a run: rows go to a journal at once and to sealed Parquet when enough have come."""

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
from trustlens.store.gaps import torn_bytes, torn_noted
from trustlens.store.layout import JOURNAL, REPLACED, RUN_FILE
from trustlens.store.location import refuse_link
from trustlens.store.locking import RunLock
from trustlens.store.overview.builder import OverviewWriter
from trustlens.store.overview.format import finest_level
from trustlens.store.reader import RunFiles
from trustlens.store.repair import clear_unfinished
from trustlens.store.run_info import RunInfo, read_info, write_info
from trustlens.store.segments.precision import rounded
from trustlens.store.table_writer import BY_LAYER, TableWriter, is_no_room

_log: Final = logging.getLogger("trustlens")

SEGMENT_ROWS: Final = 131_072
"""Rows of one sealed file: large enough to compress well, small enough to hold in memory."""


class RunWriter:
    """Writes one run, alone, until it is closed.

    Not safe for use by several threads at once, but for :meth:`change_info`. Where there is no room
    on the disk, rows are dropped until there is, with one warning, and ``run.json`` says which.

    Parameters
    ----------
    directory : Path
        Where the run lies or will lie.
    info : RunInfo
        What its ``run.json`` will say.
    resume : callable, optional
        If the directory holds a run already, it is gone on with, and this makes of its ``run.json``
        what it will say.
    segment_rows : int
        Rows of one sealed file.
    fsync : bool
        Whether a flush waits until the rows are on the disk.
    precision : int, optional
        Bits of their mantissas that floats of ``layers`` keep; all 23 if not given.

    Raises
    ------
    UsageError
        The directory holds a run that is not to be resumed or is being written by another, or it
        cannot be made or written.
    RunError
        The run that is to be resumed cannot be read.
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
        self._lock = _claim(directory)
        try:
            is_there = _holds_run(directory, resumable=resume is not None)
            clear_unfinished(directory)
            if is_there and resume is not None:
                torn = torn_bytes(directory)  # the journals, which tell of it, are about to go
                self.info = resume(torn_noted(directory, read_info(directory), torn))
            write_info(directory, self.info)
            self._overview = OverviewWriter(directory, finest_level(self.info))
            rows = SEGMENT_ROWS if segment_rows is None else segment_rows
            self._tables = {name: TableWriter(directory, name, rows) for name in TABLES}
        except OSError as error:
            self._lock.release()
            raise _unwritable(directory, error) from None
        except BaseException:
            self._lock.release()
            raise

    def append(self, table: str, rows: pa.Table) -> None:
        """Append rows in the schema of that table; they reach the disk at the next flush.

        Raises
        ------
        OSError
            It cannot be written, for another reason than that there is no room.
        """
        self._lock.check()
        if table == "layers" and self._precision is not None:
            rows = rounded(rows, self._precision)
        if rows.num_rows and table in BY_LAYER and not self._info_is_written():
            self._lose(table, rows)  # of a layer, perhaps, that run.json does not name
            return
        try:
            sealed = self._tables[table].append(rows)
        except OSError as error:
            if not is_no_room(error):
                raise
            self._lose(table, rows)
            self._warn(error)
            return
        if table in self._gaps and rows.num_rows:
            gap = self._gaps.pop(table)
            self.change_info(lambda info: _with_gaps(info, [gap]))
        if sealed and table == "layers":
            self._complete_overview(sealed)

    def change_info(self, change: Callable[[RunInfo], RunInfo]) -> None:
        """Have ``run.json`` say what ``change`` makes of what it says; safe from any thread.

        Where there is no room for it, it is written at a later flush.
        """
        with self._info_lock:
            info = change(self.info)
            if info != self.info:
                self.info = info
                self._write_info()

    def flush(self) -> None:
        """Hand everything appended so far to the operating system: a reader sees it now."""
        for table in self._tables.values():
            try:
                table.flush(sync=self._fsync)
            except OSError as error:
                if not is_no_room(error):
                    raise
                self._warn(error)
        self._info_is_written()

    def rewind(self, step: int, layers: Mapping[str, int]) -> Path | None:
        """Take away the rows of the steps behind ``step``, since they will be written anew.

        Each file that holds such rows is replaced whole, and kept as it was in a folder that no
        reader of the tables looks into. New rows go to files of new numbers, so that nobody who
        reads meanwhile sees a row twice. ``run.json`` no longer says that steps behind ``step`` are
        missing; it says so of those before it that come after all that was recorded.

        Parameters
        ----------
        step : int
            The last step that stays.
        layers : mapping of str to int
            The last step that stays of the layers of which it is an earlier one.

        Returns
        -------
        Path or None
            Where the replaced files are kept; None if there were no such rows.
        """
        self._lock.check()
        replaced = self.directory / REPLACED
        refuse_link(replaced)
        names = [entry.name for entry in replaced.iterdir()] if replaced.exists() else []
        numbers = [int(name) for name in names if name.isdecimal()]
        keep = replaced / f"{max(numbers, default=0) + 1:06d}"
        # The steps first: should it be broken off, the run ends where it was to end.
        for name in sorted(TABLES, key=lambda name: name != "steps"):
            self._tables[name].rewind(step, layers, keep / name)
        # What this one knows of is not all there any more.
        self._overview = OverviewWriter(self.directory, finest_level(self.info))
        self._note_rewind(step)
        return keep if keep.exists() else None

    def close(self, info: RunInfo) -> None:
        """Seal what is left, write ``info`` as the final ``run.json``, let others write.

        Raises
        ------
        OSError
            Not all could be sealed or written; what was appended can be read all the same.
        """
        with ExitStack() as each:  # what fails leaves nothing open, and no lock
            each.callback(self._lock.release)
            for table in self._tables.values():
                each.callback(table.release)
            self._lock.check()
            each.callback(self._end, info)
            for table in self._tables.values():
                each.callback(self._end_table, table)

    def _end_table(self, table: TableWriter) -> None:
        try:
            table.close()
        except OSError as error:
            if not is_no_room(error):
                raise
            self._warn(error)

    def _end(self, info: RunInfo) -> None:
        self._complete_overview()
        with self._info_lock:
            # `self.info` knows which steps are missing; `info` may be from before a rollback.
            recording = info.recording.with_missing_of(self.info.recording)
            self.info = _with_gaps(replace(info, recording=recording), self._gaps.values())
            self._write_info()
        with suppress(OSError):  # not there, or there was no room to seal what lies in it
            (self.directory / JOURNAL).rmdir()

    def _lose(self, table: str, rows: pa.Table) -> None:
        step = numbers(rows["step"])
        first, last = int(step.min()), int(step.max())
        before = self._gaps.get(table, (first, last))
        self._gaps[table] = (min(first, before[0]), max(last, before[1]))

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            _log.warning(
                "trustlens: there is no room to write to '%s' (%s); until there is, nothing is "
                "recorded, and the training goes on",
                self.directory,
                error.strerror or error,
            )

    def _note_rewind(self, step: int) -> None:
        # After the rows went: should the process die between, too much is told as missing, never
        # too little.
        self._gaps = {
            table: (first, min(end, step))
            for table, (first, end) in self._gaps.items()
            if first <= step
        }
        _, there = RunFiles(self.directory).span("steps") or (0, 0)
        told = max([there, *(end for _, end in self._gaps.values())])
        passed_over = [(told + 1, step)] if 0 < told < step else []

        def change(info: RunInfo) -> RunInfo:
            kept = info.recording.missing_up_to(step)
            return replace(info, recording=kept.with_missing(passed_over=passed_over))

        self.change_info(change)

    def _info_is_written(self) -> bool:
        """Write ``run.json`` if it is due; tell whether that is done."""
        if self._info_is_due:
            with self._info_lock:
                self._write_info()
        return not self._info_is_due

    def _write_info(self) -> None:
        self._lock.check()
        try:
            write_info(self.directory, self.info)
        except OSError as error:
            if not is_no_room(error):
                raise
            self._info_is_due = True
            self._warn(error)
        else:
            self._info_is_due = False

    def _complete_overview(self, sealed: Mapping[int, pa.Table] = MappingProxyType({})) -> None:
        # Some at a time: a run that has none yet must not hold up what is being recorded.
        try:
            self._overview.complete(most=8, sealed_now=sealed)
        except OSError as error:
            if not is_no_room(error):
                raise
        except RunError as error:  # who reads the file that is damaged will say so
            _log.info("trustlens: the overview of '%s' is not complete (%s)", self.directory, error)


def _with_gaps(info: RunInfo, gaps: Iterable[tuple[int, int]]) -> RunInfo:
    return replace(info, recording=info.recording.with_missing(gaps=gaps))


def _claim(directory: Path) -> RunLock:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return RunLock(directory)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(
            f"'{directory}' is a file or lies below one; give a directory to record into"
        ) from None
    except OSError as error:
        raise _unwritable(directory, error) from None


def _holds_run(directory: Path, *, resumable: bool) -> bool:
    present = {entry.name for entry in directory.iterdir()}
    # Its tables count even without a run.json: their old files would be read with the new ones.
    old = present.intersection((RUN_FILE, JOURNAL, *TABLES))
    if old and not (resumable and RUN_FILE in old):
        raise UsageError(
            f"'{directory}' already holds a run ({', '.join(sorted(old))}); give resume=True "
            "to go on with it, record into another directory, or remove it first"
        )
    return bool(old)


def _unwritable(directory: Path, error: OSError) -> UsageError:
    return UsageError(
        f"'{directory}' cannot be written ({error.strerror or error}); "
        "choose a directory that you may write to"
    )
