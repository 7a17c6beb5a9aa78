"""Writing a run: rows go to a journal at once and to sealed Parquet when enough have come."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trustlens.errors import UsageError
from trustlens.schema import TABLES
from trustlens.store.columns import column, no_rows
from trustlens.store.layout import (
    JOURNAL,
    REPLACED,
    RUN_FILE,
    SCHEMAS,
    RunInfo,
    journal_path,
    read_info,
    sealed_path,
    write_info,
)
from trustlens.store.lock import RunLock
from trustlens.store.reader import file_numbers, next_number, read_sealed
from trustlens.store.repair import seal_left
from trustlens.store.sealed import write_sealed

SEGMENT_ROWS: Final = 131_072
"""Rows of one sealed file: large enough to compress well, small enough to hold in memory."""

SEGMENT_BYTES: Final = 1 << 26
"""The same in bytes: a row of `histograms` may hold thousands of numbers."""


class RunWriter:
    """Writes one run, alone, until it is closed. Not safe for use by several threads at once.

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
        segment_rows: int = SEGMENT_ROWS,
    ) -> None:
        self.directory = directory
        self.info = info
        self._lock = _claim(directory)
        try:
            if _holds_run(directory, resumable=resume is not None) and resume is not None:
                self.info = resume(read_info(directory))
            write_info(directory, self.info)
            self._tables = {name: _TableWriter(directory, name, segment_rows) for name in TABLES}
        except OSError as error:
            self._lock.release()
            raise _unwritable(directory, error) from None
        except BaseException:
            self._lock.release()
            raise

    def append(self, table: str, rows: pa.Table) -> None:
        """Append rows in the schema of that table; they reach the disk at the next flush."""
        self._tables[table].append(rows)

    def update_info(self, info: RunInfo) -> None:
        """Replace what ``run.json`` says."""
        self.info = info
        write_info(self.directory, info)

    def flush(self) -> None:
        """Hand everything appended so far to the operating system: a reader sees it now."""
        for table in self._tables.values():
            table.flush()

    def rewind(self, step: int, layers: Mapping[str, int]) -> Path | None:
        """Take away the rows of the steps behind ``step``, since they will be written anew.

        Each file that holds such rows is replaced whole, and kept as it was in a folder that no
        reader of the tables looks into. New rows go to files of new numbers, so that nobody who
        reads meanwhile sees a row twice.

        Parameters
        ----------
        step : int
            The last step that stays.
        layers : mapping of str to int
            The last step that stays of the layers of which it is another.

        Returns
        -------
        Path or None
            Where the replaced files are kept; None if there were no such rows.
        """
        replaced = self.directory / REPLACED
        names = [entry.name for entry in replaced.iterdir()] if replaced.exists() else []
        numbers = [int(name) for name in names if name.isdecimal()]
        keep = replaced / f"{max(numbers, default=0) + 1:06d}"
        # The steps first: should it be broken off, the run ends where it was to end.
        for name in sorted(TABLES, key=lambda name: name != "steps"):
            self._tables[name].rewind(step, layers, keep / name)
        return keep if keep.exists() else None

    def close(self, info: RunInfo) -> None:
        """Seal what is left, write ``info`` as the final ``run.json``, let others write."""
        try:
            with ExitStack() as each:  # what fails in one table leaves none of the others open
                for table in self._tables.values():
                    each.callback(table.close)
            self.update_info(info)
            journal = self.directory / JOURNAL
            if journal.exists() and not any(journal.iterdir()):
                journal.rmdir()
        finally:
            self._lock.release()


_BY_LAYER: Final = ("layers", "histograms")


class _TableWriter:
    def __init__(self, directory: Path, name: str, segment_rows: int) -> None:
        self._directory = directory
        self._name = name
        self._segment_rows = segment_rows
        self._batches: list[pa.Table] = []
        self._rows = self._bytes = 0
        self._file: pa.OSFile | None = None
        self._stream: pa.RecordBatchStreamWriter | None = None
        (directory / name).mkdir(exist_ok=True)
        seal_left(directory, name)
        self._number = next_number(directory, name)

    def append(self, rows: pa.Table) -> None:
        if rows.num_rows == 0:
            return
        if self._stream is None:
            self._open()
        assert self._stream is not None  # noqa: S101
        self._stream.write_table(rows)
        self._batches.append(rows)
        self._rows += rows.num_rows
        self._bytes += rows.nbytes
        if self._rows >= self._segment_rows or self._bytes >= SEGMENT_BYTES:
            self._seal()

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        # A table without rows gets an empty file: `pandas.read_parquet(run / table)` must work.
        try:
            if self._rows or not file_numbers(self._directory, self._name)[0]:
                self._seal()
        finally:
            if self._file is not None:
                self._file.close()

    def rewind(self, step: int, layers: Mapping[str, int], keep: Path) -> None:
        lowest = min((step, *layers.values())) if self._name in _BY_LAYER else step
        numbers = [n for n in sorted(file_numbers(self._directory, self._name)[0])
                   if _last_step(self._path(n)) > lowest]  # fmt: skip
        if any(not _stays(rows, step, layers).all() for rows in self._batches) or (
            numbers and self._rows
        ):
            numbers.append(self._number)
            self._seal()
        for number in numbers:
            path = self._path(number)
            rows = read_sealed(path, self._name)
            stays = _stays(rows, step, layers)
            if not stays.all():
                _keep(path, keep)
                write_sealed(path, self._name, rows.filter(column(stays, pa.bool_())))

    def _path(self, number: int) -> Path:
        return sealed_path(self._directory, self._name, number)

    def _open(self) -> None:
        path = journal_path(self._directory, self._name, self._number)
        path.parent.mkdir(exist_ok=True)
        self._file = pa.OSFile(str(path), "wb")
        self._stream = pa.ipc.new_stream(self._file, SCHEMAS[self._name])

    def _seal(self) -> None:
        schema = SCHEMAS[self._name]
        table = pa.concat_tables(self._batches) if self._batches else no_rows(schema)
        write_sealed(self._path(self._number), self._name, table)
        if self._file is not None:
            # Its rows are sealed: a full disk, or a reader that holds it open, does no harm now.
            with suppress(OSError):
                self._file.close()
                journal_path(self._directory, self._name, self._number).unlink()
        self._file = self._stream = None
        self._batches, self._rows, self._bytes = [], 0, 0
        self._number += 1


def _last_step(path: Path) -> float:
    """Return the last step of a sealed file from its footer; infinite if that does not say."""
    last = 0.0
    try:
        metadata = pq.read_metadata(path)
    except pa.ArrowException:  # who reads the file will say what is wrong with it
        return float("inf")
    for group in range(metadata.num_row_groups):
        steps = metadata.row_group(group).column(0).statistics
        last = max(last, steps.max if steps is not None and steps.has_min_max else float("inf"))
    return last


def _stays(rows: pa.Table, step: int, layers: Mapping[str, int]) -> NDArray[np.bool_]:
    last: NDArray[np.int64] | int = step
    if layers and "layer" in rows.column_names:
        column = rows.unify_dictionaries()["layer"].combine_chunks()
        names = column.dictionary.to_pylist()
        last = np.array([layers.get(name, step) for name in names], np.int64)[column.indices]
    return rows["step"].to_numpy() <= last


def _keep(path: Path, folder: Path) -> None:
    """Keep a file that will be replaced; a second name for it where the file system has them."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, folder / path.name)
    except OSError:
        shutil.copy2(path, folder / path.name)


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
