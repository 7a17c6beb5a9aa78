"""Limits of untrusted files: a run's files are checked before they can do harm.

A file may claim terabytes in a few bytes, or point outside of its own memory, and Arrow does not
check all of that.
"""

from __future__ import annotations

import struct
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from trustlens.store.arrow import numbers

ROWS: Final = 1 << 24
"""Rows of a file at most: a hundred times those of a sealed file of ours."""

BYTES: Final = 1 << 30
"""Bytes of a journal at most: sixteen times those of ours."""

LAST_STEP: Final = 1 << 53
"""No step is behind this one: to here float64 counts exactly."""

_HEADER: Final = 2  # fields of Arrow's Message, RecordBatch and DictionaryBatch (Message.fbs)
_COMPRESSION: Final = 3
_DATA: Final = 1


def check_footer(metadata: pq.FileMetaData) -> None:
    """Refuse a Parquet file that says to be larger than ours ever are.

    Raises
    ------
    ValueError
        It says so.
    """
    # Not of its row groups: pyarrow ends the process where these do not agree with the schema.
    if not 0 <= metadata.num_rows <= ROWS:
        raise ValueError(f"it claims {metadata.num_rows:,} rows")


def check_rows(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return rows of a file in the types that they are to have.

    Raises
    ------
    pyarrow.ArrowException
        They are of others.
    ValueError
        There is nothing where there must be something, or a step that no training does.
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
    """Refuse an Arrow stream with a compressed message: ours have none, and one may be a bomb.

    Raises
    ------
    ValueError
        It has one.
    """
    reader = pa.ipc.MessageReader.open_stream(pa.BufferReader(data))
    try:
        for message in reader:
            if _is_compressed(message.metadata.to_pybytes(), message.type):
                raise ValueError("it is compressed, which a journal never is")
    except (pa.ArrowException, OSError, StopIteration):
        return  # the end, or where it is torn: who reads it finds that too


def _is_compressed(message: bytes, kind: str) -> bool:
    try:
        table = _field(message, _root(message), _HEADER)
        if kind == "dictionary" and table:
            table = _field(message, table, _DATA)
        return bool(table and _field(message, table, _COMPRESSION))
    except (struct.error, IndexError):
        return True  # not to be understood, and so not to be trusted


def _root(message: bytes) -> int:
    return struct.unpack_from("<I", message, 0)[0]


def _field(message: bytes, table: int, number: int) -> int:
    """Return where the table lies that a FlatBuffers table has as a field; 0 if it has none."""
    entries = table - struct.unpack_from("<i", message, table)[0]
    size = struct.unpack_from("<H", message, entries)[0]
    if 4 + 2 * number >= size:
        return 0
    offset = struct.unpack_from("<H", message, entries + 4 + 2 * number)[0]
    return 0 if not offset else table + offset + _root(message[table + offset :])
