"""Writing a run: rows go to a journal at once and to sealed Parquet when enough have come."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trustlens.errors import UsageError
from trustlens.schema import TABLES
from trustlens.store.layout import (
    JOURNAL,
    RUN_FILE,
    SCHEMAS,
    RunInfo,
    journal_path,
    sealed_path,
    write_info,
    written_whole,
)

SEGMENT_ROWS: Final = 131_072
"""Rows of one sealed file: large enough to compress well, small enough to hold in memory."""

SEGMENT_BYTES: Final = 1 << 26
"""The same in bytes: a row of `histograms` may hold thousands of numbers."""


class RunWriter:
    """Writes one run. Not safe for use by several threads at once.

    Raises
    ------
    UsageError
        The directory already holds a run, or cannot be made or written.
    """

    def __init__(self, directory: Path, info: RunInfo, *, segment_rows: int = SEGMENT_ROWS) -> None:
        self.directory = directory
        self.info = info
        _claim(directory)
        try:
            write_info(directory, info)
            self._tables = {name: _TableWriter(directory, name, segment_rows) for name in TABLES}
        except OSError as error:
            raise _unwritable(directory, error) from None

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

    def close(self, info: RunInfo) -> None:
        """Seal what is left and write ``info`` as the final ``run.json``."""
        with ExitStack() as each:  # what fails in one table leaves none of the others open
            for table in self._tables.values():
                each.callback(table.close)
        self.update_info(info)
        journal = self.directory / JOURNAL
        if journal.exists() and not any(journal.iterdir()):
            journal.rmdir()


class _TableWriter:
    def __init__(self, directory: Path, name: str, segment_rows: int) -> None:
        self._directory = directory
        self._name = name
        self._segment_rows = segment_rows
        self._number = 0
        self._batches: list[pa.Table] = []
        self._rows = self._bytes = 0
        self._file: pa.OSFile | None = None
        self._stream: pa.RecordBatchStreamWriter | None = None
        (directory / name).mkdir(exist_ok=True)

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
            if self._rows or self._number == 0:
                self._seal()
        finally:
            if self._file is not None:
                self._file.close()

    def _open(self) -> None:
        path = journal_path(self._directory, self._name, self._number)
        path.parent.mkdir(exist_ok=True)
        self._file = pa.OSFile(str(path), "wb")
        self._stream = pa.ipc.new_stream(self._file, SCHEMAS[self._name])

    def _seal(self) -> None:
        schema = SCHEMAS[self._name]
        table = pa.concat_tables(self._batches) if self._batches else schema.empty_table()
        write_sealed(sealed_path(self._directory, self._name, self._number), self._name, table)
        if self._file is not None:
            # Its rows are sealed: a full disk, or a reader that holds it open, does no harm now.
            with suppress(OSError):
                self._file.close()
                journal_path(self._directory, self._name, self._number).unlink()
        self._file = self._stream = None
        self._batches, self._rows, self._bytes = [], 0, 0
        self._number += 1


def write_sealed(path: Path, name: str, table: pa.Table) -> None:
    """Write one Parquet file of that table, sorted, whole or not at all."""
    table = table.unify_dictionaries().combine_chunks()
    keys = [column for column in ("layer", "name", "quantity") if column in table.column_names]
    table = table.take(_order(table, [*keys, "step"]))
    with written_whole(path) as temporary:
        pq.write_table(table, temporary, **_encoding(name))


def _order(table: pa.Table, keys: list[str]) -> pa.Array:
    columns = {
        key: table[key].cast(pa.string()) if pa.types.is_dictionary(table[key].type) else table[key]
        for key in keys
    }
    options = pc.SortOptions(sort_keys=[(key, "ascending") for key in keys])
    return pc.call_function("sort_indices", [pa.table(columns)], options)


def _encoding(name: str) -> dict[str, Any]:
    """Parquet options of a table: floats split by byte, steps by their differences."""
    options: dict[str, Any] = {"compression": "zstd", "compression_level": 3}
    if name == "histograms":
        return options
    encodings: dict[str, str] = {}
    for column in SCHEMAS[name]:
        if pa.types.is_floating(column.type):
            encodings[column.name] = "BYTE_STREAM_SPLIT"
        elif pa.types.is_integer(column.type) or pa.types.is_timestamp(column.type):
            encodings[column.name] = "DELTA_BINARY_PACKED"
    dictionaries = [c.name for c in SCHEMAS[name] if pa.types.is_dictionary(c.type)]
    return {**options, "use_dictionary": dictionaries, "column_encoding": encodings}


def _claim(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        present = {entry.name for entry in directory.iterdir()}
    except (FileExistsError, NotADirectoryError):
        raise UsageError(
            f"'{directory}' is a file or lies below one; give a directory to record into"
        ) from None
    except OSError as error:
        raise _unwritable(directory, error) from None
    # Its tables count even without a run.json: their old files would be read with the new ones.
    old = present.intersection((RUN_FILE, JOURNAL, *TABLES))
    if old:
        raise UsageError(
            f"'{directory}' already holds a run ({', '.join(sorted(old))}); "
            "record into another directory, or remove it first"
        )


def _unwritable(directory: Path, error: OSError) -> UsageError:
    return UsageError(
        f"'{directory}' cannot be written ({error.strerror or error}); "
        "choose a directory that you may write to"
    )
