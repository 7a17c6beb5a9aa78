"""Reading all rows of one sealed segment, or of one journal."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from trustlens.store.address import Address, locate
from trustlens.store.arrow import no_rows
from trustlens.store.damage import damage_reported
from trustlens.store.layout import SCHEMAS
from trustlens.store.location import Location
from trustlens.store.validation import BYTES, check_footer, check_rows, check_stream

Found = TypeVar("Found")


def read_sealed(address: Address, table: str) -> pa.Table:
    """Return the rows of a sealed segment; RunError if it is damaged."""
    path = locate(address)

    def read() -> pa.Table:
        with path.open() as file:
            opened = pq.ParquetFile(file)
            check_footer(opened.metadata)
            return check_rows(opened.read(SCHEMAS[table].names), SCHEMAS[table])

    return readable(path, read)


def read_journal(path: Address, table: str) -> pa.Table:
    """Return the rows of a journal; an incomplete batch at the end is left out."""
    return read_whole(path, table)[0]


def read_whole(address: Address, table: str) -> tuple[pa.Table, int]:
    """Return the rows of a journal's whole batches, and the number of bytes after these batches.

    The number is 0 if there is no incomplete batch. A journal of more than `BYTES` bytes is not
    read: no rows are returned, and the number is its size.
    """
    path, schema = locate(address), SCHEMAS[table]
    batches = [no_rows(schema)]
    with path.open() as file, path.reading():
        size, whole = file.size(), 0
        if size > BYTES:
            return batches[0], size
        data = file.read_buffer()
    try:
        check_stream(data)
        stream = pa.BufferReader(data)
        reader = pa.ipc.open_stream(stream)
        while True:
            whole = stream.tell()
            batch = pa.Table.from_batches([reader.read_next_batch()])
            batches.append(check_rows(batch, schema))
    except StopIteration:
        torn = 0
    except (pa.ArrowException, OSError, ValueError, KeyError):
        torn = size - whole  # a batch is incomplete, or this is not a journal
    return pa.concat_tables(batches), torn


def readable(path: Location, read: Callable[[], Found]) -> Found:
    """Return ``read()``, which reads the file ``path``; RunError if the file is damaged."""
    with damage_reported(path, remedy="restore it, or move it away to read the rest of the run"):
        return read()
