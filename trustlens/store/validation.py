"""Checks of untrusted files: a run's files are checked before Arrow decodes them.

A file of a few bytes may claim terabytes, or have offsets outside of its own memory, and Arrow does
not check all of that.
"""

from __future__ import annotations

import struct
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from trustlens.store.arrow import numbers

ROWS: Final = 1 << 24
"""Maximum rows of a file: 128 times those of a segment that trustlens writes."""

BYTES: Final = 1 << 30
"""Maximum bytes of a journal: 16 times those of a journal that trustlens writes."""

LAST_STEP: Final = 1 << 53
"""The largest step: float64 represents all integers up to this one."""

_HEADER: Final = 2  # indices of fields of Message, RecordBatch and DictionaryBatch (Message.fbs)
_COMPRESSION: Final = 3
_DATA: Final = 1


def check_footer(metadata: pq.FileMetaData) -> None:
    """Refuse a Parquet file that claims to have more rows than any file of trustlens.

    Raises
    ------
    ValueError
        If it claims more than `ROWS`.
    """
    # Row groups are not read: pyarrow aborts the process if they do not match the schema.
    if not 0 <= metadata.num_rows <= ROWS:
        raise ValueError(f"it claims {metadata.num_rows:,} rows")


def check_rows(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Check rows that were read from a file, and return them cast to a schema.

    Raises
    ------
    pyarrow.ArrowException
        If the rows lack a column or have other types.
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
    """Refuse an Arrow stream with a compressed message.

    Journals are never compressed, and a small message could expand to any size.

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
        return  # the end of the stream, or a torn message: the caller finds it too


def _is_compressed(message: bytes, kind: str) -> bool:
    try:
        table = _table_in_field(message, _root(message), _HEADER)
        if kind == "dictionary" and table:
            table = _table_in_field(message, table, _DATA)
        return bool(table and _table_in_field(message, table, _COMPRESSION))
    except (struct.error, IndexError):
        return True  # a message that cannot be parsed is not trusted


def _root(message: bytes) -> int:
    return struct.unpack_from("<I", message, 0)[0]


def _table_in_field(message: bytes, table: int, number: int) -> int:
    """Return the offset of the table in a field of a FlatBuffers table; 0 if it is absent."""
    entries = table - struct.unpack_from("<i", message, table)[0]
    size = struct.unpack_from("<H", message, entries)[0]
    if 4 + 2 * number >= size:
        return 0
    offset = struct.unpack_from("<H", message, entries + 4 + 2 * number)[0]
    return 0 if not offset else table + offset + _root(message[table + offset :])
