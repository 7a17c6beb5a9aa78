"""Conversion between numpy arrays and Arrow columns, without copying the values.

This module calls neither ``pyarrow.array`` nor ``to_numpy``. Both import pandas if pandas is
installed. The import takes 0.2 s, and blocks the training because it holds the interpreter lock.
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
    """Return the values of an array as an Arrow column.

    The column shares the memory of the array: do not modify the array later. Only booleans are
    copied, since Arrow stores each as one bit.

    Parameters
    ----------
    values : array (rows,)
        A contiguous array. Its items have as many bytes as items of ``kind``; its dtype is bool if
        ``kind`` is boolean.
    kind : pyarrow.DataType
        The type of the column: boolean, or any type whose items all have the same size.
    null : bool (rows,), optional
        True for each row in which the column is null; by default no row is.
    """
    data = np.packbits(values, bitorder="little") if pa.types.is_boolean(kind) else values
    nulls = 0 if null is None else int(np.count_nonzero(null))
    present = None
    if null is not None and nulls:
        present = pa.py_buffer(np.packbits(~null, bitorder="little"))
    return pa.Array.from_buffers(kind, len(values), [present, pa.py_buffer(data)], nulls)


def columns_of(values: NDArray[Any], kind: pa.DataType, null: NDArray[np.bool_]) -> list[pa.Array]:
    """Return a list with one Arrow column for each row of a matrix.

    This is faster than calling :func:`column` for each row. The columns share the memory of the
    matrix.

    Parameters
    ----------
    values : array (columns, rows)
        A contiguous matrix. Its items have as many bytes as items of ``kind``.
    kind : pyarrow.DataType
        The type of the columns: any type, except boolean, whose items all have the same size.
    null : bool (columns, rows)
        True for each value that is null in its column.
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
    """Return strings as an Arrow column."""
    encoded = [value.encode() for value in values]
    ends = np.zeros(len(encoded) + 1, np.int32)
    np.cumsum([len(each) for each in encoded], out=ends[1:])
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(encoded), buffers, 0)


def dictionary(indices: NDArray[np.int32], values: Sequence[str] | pa.Array) -> pa.DictionaryArray:
    """Return a dictionary column, whose row i is ``values[indices[i]]``."""
    column_of_values = values if isinstance(values, pa.Array) else texts(values)
    return pa.DictionaryArray.from_arrays(column(indices, pa.int32()), column_of_values)


def no_rows(schema: pa.Schema) -> pa.Table:
    """Return a table that has the schema and no rows."""
    return pa.Table.from_batches([], schema)


_NUMPY: Final = {
    pa.int16(): np.int16,
    pa.int32(): np.int32,
    pa.int64(): np.int64,
    pa.float32(): np.float32,
    pa.float64(): np.float64,
}


def numbers(values: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    """Return a numeric column as an array (rows,); it has arbitrary values at the nulls."""
    array = _combine_chunks(values)
    data = array.buffers()[1]
    if data is None:
        return np.zeros(len(array), _NUMPY[array.type])
    items = np.frombuffer(data, _NUMPY[array.type])
    return items[array.offset : array.offset + len(array)]


def present(values: pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
    """Return a mask, bool (rows,), that is True for rows that are not null."""
    array = _combine_chunks(values)
    bits = array.buffers()[0] if array.null_count else None
    if bits is None:
        return np.ones(len(array), np.bool_)
    mask = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")
    return mask[array.offset : array.offset + len(array)].view(np.bool_)


def codes(texts: pa.ChunkedArray) -> tuple[NDArray[np.int32], list[str]]:
    """Return a dictionary column's indices, int32 (rows,), and the texts that they refer to."""
    array = _combine_chunks(texts.unify_dictionaries())
    return numbers(array.indices), array.dictionary.to_pylist()


def _combine_chunks(values: Any) -> Any:
    if not isinstance(values, pa.ChunkedArray):
        return values
    if values.num_chunks == 1:
        return values.chunk(0)
    # Without any chunk, combine_chunks would call pyarrow.array, which imports pandas.
    return values.combine_chunks() if values.num_chunks else _no_values(values.type)


def _no_values(kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return dictionary(np.zeros(0, np.int32), [])
    return column(np.zeros(0, _NUMPY[kind]), kind)
