"""Writing one table of a run.

Rows are appended to a journal. When there are enough, they are written to a Parquet file together,
and the journal is removed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import pyarrow as pa

from trustlens.store.arrow import no_rows
from trustlens.store.layout import SCHEMAS, journal_path, sealed_path
from trustlens.store.overview.format import remove_pieces_from
from trustlens.store.reader import RunFiles
from trustlens.store.segments.files import next_number, sealed_numbers
from trustlens.store.segments.leftovers import seal_leftovers
from trustlens.store.segments.rollback import kept_rows, roll_back_segment
from trustlens.store.segments.sealed import write_sealed

SEGMENT_BYTES: Final = 1 << 26
"""Size in bytes at which a segment is sealed even if it has few rows: rows of ``histograms`` may be
large."""

BY_LAYER: Final = ("layers", "histograms")
"""The tables that have a column ``layer``."""

_DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error means that the disk, or a quota, is full."""
    return isinstance(error, OSError) and error.errno in _DISK_FULL


class TableWriter:
    """Writes one table of a run, for a `RunWriter`, which holds the run's lock.

    Parameters
    ----------
    directory : Path
        The directory of the run.
    name : str
        One of ``trustlens.schema.TABLES``.
    segment_rows : int
        Number of rows at which a segment is sealed.
    """

    def __init__(self, directory: Path, name: str, segment_rows: int) -> None:
        self._directory = directory
        self._name = name
        self._segment_rows = segment_rows
        self._batches: list[pa.Table] = []
        self._rows = self._bytes = 0
        self._file: pa.OSFile | None = None
        self._stream: pa.RecordBatchStreamWriter | None = None
        self._has_leftovers = False  # whether earlier journals still have to be sealed
        (directory / name).mkdir(exist_ok=True)
        seal_leftovers(directory, name)
        self._number = next_number(directory, name)

    def append(self, rows: pa.Table) -> dict[int, pa.Table]:
        """Append rows to the journal, and seal the segment if it is large enough.

        Returns
        -------
        dict of int to pyarrow.Table
            If a segment was sealed, the sorted rows of the segment, by its number. Otherwise empty.

        Raises
        ------
        OSError
            If the rows could not be written. Rows appended before are not affected.
        """
        if rows.num_rows == 0:
            return {}
        self._write_to_journal(rows)
        self._batches.append(rows)
        self._rows += rows.num_rows
        self._bytes += rows.nbytes
        if self._rows < self._segment_rows and self._bytes < SEGMENT_BYTES:
            return {}
        return self._try_to_seal()

    def flush(self, *, sync: bool) -> None:
        """Pass appended rows to the operating system; if ``sync``, wait until they are on disk."""
        if self._file is None:
            return
        self._file.flush()
        if sync:
            descriptor = os.open(self._journal_path, os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Seal the remaining rows, and rows of earlier journals that could not be sealed."""
        # A table without rows gets a segment too: `pandas.read_parquet(run / table)` must work.
        try:
            if self._rows or not sealed_numbers(self._directory, self._name):
                self._seal()
            if self._has_leftovers:
                seal_leftovers(self._directory, self._name)
        finally:
            self.release()

    def release(self) -> None:
        """Close the journal without sealing it."""
        if self._file is not None:
            self._file.close()

    def rollback(self, step: int, layers: Mapping[str, int], keep: Path) -> None:
        """Remove this table's rows after ``step``, for :meth:`RunWriter.rollback`.

        Parameters
        ----------
        step : int
            The last step whose rows are kept.
        layers : mapping of str to int
            Layers with another last step than ``step``: by layer name, the last step that is kept.
        keep : Path
            The folder for copies of the segments that are rewritten.
        """
        lowest = min((step, *layers.values())) if self._name in BY_LAYER else step
        if self._has_leftovers:
            seal_leftovers(self._directory, self._name, before=self._number)
            self._has_leftovers = False
        spans = RunFiles(self._directory).spans(self._name)
        numbers = [number for number, (_, last) in spans.items() if last > lowest]
        if any(not kept_rows(rows, step, layers).all() for rows in self._batches) or (
            numbers and self._rows
        ):
            numbers.append(self._number)
            self._seal()
        if numbers and self._name == "layers":
            # Before the rows are removed: readers read the overview first.
            remove_pieces_from(self._directory, numbers[0])
        # The last segment first: if this is interrupted, only the run's last steps are missing.
        for number in reversed(numbers):
            roll_back_segment(self._segment_path(number), self._name, step, layers, keep)

    @property
    def _journal_path(self) -> Path:
        return journal_path(self._directory, self._name, self._number)

    def _segment_path(self, number: int) -> Path:
        return sealed_path(self._directory, self._name, number)

    def _write_to_journal(self, rows: pa.Table) -> None:
        size = 0
        try:
            stream, file = self._open_journal()
            size = file.tell()
            stream.write_table(rows)
        except OSError:
            self._truncate_journal(size)
            raise

    def _open_journal(self) -> tuple[pa.RecordBatchStreamWriter, pa.OSFile]:
        if self._stream is None or self._file is None:
            self._journal_path.parent.mkdir(exist_ok=True)
            self._file = pa.OSFile(str(self._journal_path), "wb")
            self._stream = pa.ipc.new_stream(self._file, SCHEMAS[self._name])
        return self._stream, self._file

    def _truncate_journal(self, size: int) -> None:
        """Cut the journal to ``size`` bytes, which are whole batches; begin the next segment."""
        with suppress(OSError):
            if self._file is not None:
                self._file.close()
            if self._rows:
                os.truncate(self._journal_path, size)
            else:
                self._journal_path.unlink(missing_ok=True)
        self._begin_next()

    def _begin_next(self) -> None:
        """Begin the next segment; the journal of the current one remains, and is sealed later."""
        self._has_leftovers = self._has_leftovers or self._rows > 0
        self._number += self._rows > 0
        self._reset()

    def _reset(self) -> None:
        self._file = self._stream = None
        self._batches, self._rows, self._bytes = [], 0, 0

    def _try_to_seal(self) -> dict[int, pa.Table]:
        """Seal the rows, and return them by segment number.

        If the disk is full, return an empty dict. Then the rows stay in their journal, and are
        sealed later.
        """
        try:
            if self._has_leftovers:
                seal_leftovers(self._directory, self._name, before=self._number)
                self._has_leftovers = False
            return self._seal()
        except OSError as error:
            if self._file is not None:
                self._file.close()
            self._begin_next()
            if not is_disk_full(error):
                raise
            return {}

    def _seal(self) -> dict[int, pa.Table]:
        rows = pa.concat_tables(self._batches) if self._batches else no_rows(SCHEMAS[self._name])
        sealed = {self._number: write_sealed(self._segment_path(self._number), self._name, rows)}
        if self._file is not None:
            # The rows are sealed already: a journal that cannot be removed is ignored by readers.
            with suppress(OSError):
                self._file.close()
                self._journal_path.unlink()
        self._number += 1
        self._reset()
        return sealed
