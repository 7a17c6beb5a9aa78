"""Conversion between numpy arrays and Arrow columns, without copying the values.

``pyarrow.array`` (which also checks each value) and ``to_numpy`` are not used: both import pandas
if it is installed, which takes 0.2 s and blocks the training, since it holds the interpreter lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def column(
    values: NDArray[Any], kind: pa.DataType, null: NDArray[np.bool_] | None = None
) -> pa.Array:
    """Return an array as an Arrow column that shares its memory: do not modify the array later.

    Parameters
    ----------
    values : (rows,)
        Contiguous, with items of the width of ``kind``; `bool` for booleans.
    kind : pyarrow.DataType
        A type of fixed width, or booleans.
    null : bool (rows,), optional
        True for rows that are null in the column.
    """
    data = np.packbits(values, bitorder="little") if pa.types.is_boolean(kind) else values
    nulls = 0 if null is None else int(np.count_nonzero(null))
    present = None
    if null is not None and nulls:
        present = pa.py_buffer(np.packbits(~null, bitorder="little"))
    return pa.Array.from_buffers(kind, len(values), [present, pa.py_buffer(data)], nulls)


def columns_of(values: NDArray[Any], kind: pa.DataType, null: NDArray[np.bool_]) -> list[pa.Array]:
    """Return each row of a matrix as a column, as :func:`column` does, in fewer operations.

    Parameters
    ----------
    values : (columns, rows)
        Contiguous, with items of the width of ``kind``.
    kind : pyarrow.DataType
        A type of fixed width.
    null : bool (columns, rows)
        True for values that are null in the columns.
    """
    bits = np.packbits(~null, axis=1, bitorder="little")
    data, present = pa.py_buffer(values), pa.py_buffer(bits)
    width, rows = bits.shape[1], values.shape[1]
    return [
        pa.Array.from_buffers(
            kind,
            rows,
            [
                present.slice(i * width, width) if nulls else None,
                data.slice(i * rows * values.itemsize, rows * values.itemsize),
            ],
            nulls,
        )
        for i, nulls in enumerate(null.sum(axis=1).tolist())
    ]


def texts(values: Sequence[str]) -> pa.Array:
    """Return strings as a column."""
    encoded = [value.encode() for value in values]
    ends = np.zeros(len(encoded) + 1, np.int32)
    np.cumsum([len(each) for each in encoded], out=ends[1:])
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(encoded), buffers, 0)


def dictionary(indices: NDArray[np.int32], values: Sequence[str] | pa.Array) -> pa.DictionaryArray:
    """Return a dictionary column; the indices must be valid indices of ``values``."""
    column_of_values = values if isinstance(values, pa.Array) else texts(values)
    return pa.DictionaryArray.from_arrays(column(indices, pa.int32()), column_of_values)


def no_rows(schema: pa.Schema) -> pa.Table:
    """Return an empty table."""
    return pa.Table.from_batches([], schema)


_NUMPY: Final = {
    pa.int16(): np.int16,
    pa.int32(): np.int32,
    pa.int64(): np.int64,
    pa.float32(): np.float32,
    pa.float64(): np.float64,
}


def numbers(values: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    """Return a numeric column as an array of the same type, (rows,); nulls have any value."""
    array = _combine_chunks(values)
    data = array.buffers()[1]
    if data is None:
        return np.zeros(len(array), _NUMPY[array.type])
    items = np.frombuffer(data, _NUMPY[array.type])
    return items[array.offset : array.offset + len(array)]


def present(values: pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
    """Return a mask of the rows that are not null, bool (rows,)."""
    array = _combine_chunks(values)
    bits = array.buffers()[0] if array.null_count else None
    if bits is None:
        return np.ones(len(array), np.bool_)
    mask = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")
    return mask[array.offset : array.offset + len(array)].view(np.bool_)


def codes(texts: pa.ChunkedArray) -> tuple[NDArray[np.int32], list[str]]:
    """Return the indices, int32 (rows,), and the list of texts of a dictionary column."""
    array = _combine_chunks(texts.unify_dictionaries())
    return numbers(array.indices), array.dictionary.to_pylist()


def _combine_chunks(values: Any) -> Any:
    if not isinstance(values, pa.ChunkedArray):
        return values
    if values.num_chunks == 1:
        return values.chunk(0)
    # combine_chunks would call pyarrow.array if there are no chunks.
    return values.combine_chunks() if values.num_chunks else _no_values(values.type)


def _no_values(kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return dictionary(np.zeros(0, np.int32), [])
    return column(np.zeros(0, _NUMPY[kind]), kind)
