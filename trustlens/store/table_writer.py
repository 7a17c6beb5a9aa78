"""Writing one table of a run: to its journal at once, and sealed when enough rows have come."""

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
from trustlens.store.overview.format import forget
from trustlens.store.reader import RunFiles
from trustlens.store.segments.files import next_number, sealed_numbers
from trustlens.store.segments.leftovers import seal_leftovers
from trustlens.store.segments.rollback import keep_rows, stays
from trustlens.store.segments.sealed import write_sealed

SEGMENT_BYTES: Final = 1 << 26
"""Bytes of the rows of one sealed file: a row of `histograms` may hold thousands of numbers."""

BY_LAYER: Final = ("layers", "histograms")

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_no_room(error: BaseException) -> bool:
    """Tell whether an error says that there is no room on the disk, which may pass."""
    return isinstance(error, OSError) and error.errno in _NO_ROOM


class TableWriter:
    """Writes one table of a run; who makes it has the run's lock.

    Parameters
    ----------
    directory : Path
        The run.
    name : str
        One of ``trustlens.schema.TABLES``.
    segment_rows : int
        Rows of one sealed file.
    """

    def __init__(self, directory: Path, name: str, segment_rows: int) -> None:
        self._directory = directory
        self._name = name
        self._segment_rows = segment_rows
        self._batches: list[pa.Table] = []
        self._rows = self._bytes = 0
        self._file: pa.OSFile | None = None
        self._stream: pa.RecordBatchStreamWriter | None = None
        self._left = False  # whether there are journals behind the one that is written
        (directory / name).mkdir(exist_ok=True)
        seal_leftovers(directory, name)
        self._number = next_number(directory, name)

    def append(self, rows: pa.Table) -> dict[int, pa.Table]:
        """Append rows to the journal; return what was sealed by that, if anything, by number.

        Raises
        ------
        OSError
            They are not in it; what was appended before is as it was.
        """
        if rows.num_rows == 0:
            return {}
        self._journal(rows)
        self._batches.append(rows)
        self._rows += rows.num_rows
        self._bytes += rows.nbytes
        if self._rows < self._segment_rows and self._bytes < SEGMENT_BYTES:
            return {}
        return self._sealed()

    def flush(self, *, sync: bool) -> None:
        """Hand what was appended to the operating system; if ``sync``, have it on the disk."""
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
        """Seal what is left."""
        # A table without rows gets an empty file: `pandas.read_parquet(run / table)` must work.
        try:
            if self._rows or not sealed_numbers(self._directory, self._name):
                self._seal()
            if self._left:
                seal_leftovers(self._directory, self._name)
        finally:
            self.release()

    def release(self) -> None:
        """Let go of the journal, which stays as it is."""
        if self._file is not None:
            self._file.close()

    def rewind(self, step: int, layers: Mapping[str, int], keep: Path) -> None:
        """Take away the rows of the steps behind ``step``, as ``RunWriter.rewind`` says."""
        lowest = min((step, *layers.values())) if self._name in BY_LAYER else step
        if self._left:
            seal_leftovers(self._directory, self._name, before=self._number)
            self._left = False
        spans = RunFiles(self._directory).spans(self._name)
        numbers = [number for number, (_, last) in spans.items() if last > lowest]
        if any(not stays(rows, step, layers).all() for rows in self._batches) or (
            numbers and self._rows
        ):
            numbers.append(self._number)
            self._seal()
        if numbers and self._name == "layers":
            forget(self._directory, numbers[0])  # before its rows go: a reader looks there first
        for number in reversed(numbers):  # broken off, it leaves no hole
            keep_rows(self._path(number), self._name, step, layers, keep)

    @property
    def _journal_path(self) -> Path:
        return journal_path(self._directory, self._name, self._number)

    def _path(self, number: int) -> Path:
        return sealed_path(self._directory, self._name, number)

    def _journal(self, rows: pa.Table) -> None:
        whole = 0
        try:
            stream, file = self._opened()
            whole = file.tell()
            stream.write_table(rows)
        except OSError:
            self._cut(whole)
            raise

    def _opened(self) -> tuple[pa.RecordBatchStreamWriter, pa.OSFile]:
        if self._stream is None or self._file is None:
            self._journal_path.parent.mkdir(exist_ok=True)
            self._file = pa.OSFile(str(self._journal_path), "wb")
            self._stream = pa.ipc.new_stream(self._file, SCHEMAS[self._name])
        return self._stream, self._file

    def _cut(self, whole: int) -> None:
        """Have the journal end with its last whole batch, and write no more to it."""
        with suppress(OSError):
            if self._file is not None:
                self._file.close()
            if self._rows:
                os.truncate(self._journal_path, whole)
            else:
                self._journal_path.unlink(missing_ok=True)
        self._leave()

    def _leave(self) -> None:
        """Go on with the next number; the rows of this one are sealed from its journal, later."""
        self._left = self._left or self._rows > 0
        self._number += self._rows > 0
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._file = self._stream = None
        self._batches, self._rows, self._bytes = [], 0, 0

    def _sealed(self) -> dict[int, pa.Table]:
        """Seal the rows if there is room; if not they stay in their journal until there is."""
        try:
            if self._left:
                seal_leftovers(self._directory, self._name, before=self._number)
                self._left = False
            return self._seal()
        except OSError as error:
            if self._file is not None:
                self._file.close()
            self._leave()
            if not is_no_room(error):
                raise
            return {}

    def _seal(self) -> dict[int, pa.Table]:
        rows = pa.concat_tables(self._batches) if self._batches else no_rows(SCHEMAS[self._name])
        sealed = {self._number: write_sealed(self._path(self._number), self._name, rows)}
        if self._file is not None:
            # Its rows are sealed: a full disk, or a reader that holds it open, does no harm now.
            with suppress(OSError):
                self._file.close()
                self._journal_path.unlink()
        self._number += 1
        self._begin_anew()
        return sealed
