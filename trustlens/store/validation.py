"""Checks of a run's files, which may be damaged or come from someone who is not trusted.

A file of a few bytes may claim to hold terabytes, or contain offsets that point outside the file.
Arrow does not check all of that.
"""

from __future__ import annotations

import struct
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from trustlens.store.arrow import numbers

ROWS: Final = 1 << 24
"""Maximum number of rows of a file: 128 times as many as trustlens writes to a segment."""

BYTES: Final = 1 << 30
"""Maximum size of a journal in bytes: 16 times the size at which trustlens seals a journal."""

LAST_STEP: Final = 1 << 53
"""The largest step that a run may have: float64 represents all integers up to this one."""

# Indices of fields of FlatBuffers tables, from Arrow's Message.fbs.
_HEADER: Final = 2  # Message.header
_COMPRESSION: Final = 3  # RecordBatch.compression
_DATA: Final = 1  # DictionaryBatch.data


def check_footer(metadata: pq.FileMetaData) -> None:
    """Refuse a Parquet file whose footer claims more rows than any file of trustlens has.

    Raises
    ------
    ValueError
        If the claimed number of rows is negative or more than `ROWS`.
    """
    # The row groups are not examined: pyarrow aborts the process if one does not match the schema.
    if not 0 <= metadata.num_rows <= ROWS:
        raise ValueError(f"it claims {metadata.num_rows:,} rows")


def check_rows(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Check rows that were read from a file, and return them cast to a schema.

    Raises
    ------
    pyarrow.ArrowException
        If the rows are malformed, lack a column, or have a column that cannot be cast.
    ValueError
        If a required value is null, or a step is out of range.
    """
    rows.validate(full=True)
    rows = rows.select(schema.names).cast(schema)
    for field in schema:
        if not field.nullable and rows[field.name].null_count:
            raise ValueError(f"there are rows without a {field.name}")
    if "step" in schema.names and rows.num_rows:
        step = numbers(rows["step"])
        if step.min() < 0 or step.max() > LAST_STEP:
            raise ValueError(f"there are steps from {step.min()} to {step.max()}")
    return rows


def check_stream(data: pa.Buffer) -> None:
    """Refuse an Arrow IPC stream that contains a compressed message.

    Journals are never compressed, and a small compressed message could expand to any size.

    Raises
    ------
    ValueError
        If a message is compressed.
    """
    reader = pa.ipc.MessageReader.open_stream(pa.BufferReader(data))
    try:
        for message in reader:
            if _is_compressed(message.metadata.to_pybytes(), message.type):
                raise ValueError("it is compressed, which a journal never is")
    except (pa.ArrowException, OSError, StopIteration):
        return  # the end of the stream, or an incomplete message: the caller handles both


def _is_compressed(message: bytes, kind: str) -> bool:
    try:
        table = _table_in_field(message, _root(message), _HEADER)
        if kind == "dictionary" and table:
            table = _table_in_field(message, table, _DATA)
        return bool(table and _table_in_field(message, table, _COMPRESSION))
    except (struct.error, IndexError):
        return True  # a message that cannot be parsed is refused like a compressed one


def _root(message: bytes) -> int:
    return struct.unpack_from("<I", message, 0)[0]


def _table_in_field(message: bytes, table: int, number: int) -> int:
    """Return the offset of the table that a field of another FlatBuffers table refers to.

    Parameters
    ----------
    message : bytes
        The message that contains both tables.
    table : int
        Offset of the table that has the field.
    number : int
        Index of the field.

    Returns
    -------
    int
        The offset, in bytes from the beginning of the message; 0 if the field is absent.
    """
    entries = table - struct.unpack_from("<i", message, table)[0]
    size = struct.unpack_from("<H", message, entries)[0]
    if 4 + 2 * number >= size:
        return 0
    offset = struct.unpack_from("<H", message, entries + 4 + 2 * number)[0]
    return 0 if not offset else table + offset + _root(message[table + offset :])
