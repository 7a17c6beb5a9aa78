"""Arrow's columns of numpy's arrays and back, as they lie.

Not by ``pyarrow.array``, which looks at each value, nor by ``to_numpy``: both import pandas where
that is installed, a fifth of a second, in which the training waits for the interpreter.
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
    """Return values as a column; they must not be written to any more.

    Parameters
    ----------
    values : (rows,)
        Contiguous, of the width of ``kind``; of `bool` for booleans.
    kind : pyarrow.DataType
        A fixed width, or booleans.
    null : bool (rows,), optional
        Where the column is null instead.
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
        Contiguous, of the width of ``kind``.
    kind : pyarrow.DataType
        A fixed width.
    null : bool (columns, rows)
        Where the columns are null instead.
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
    """Return texts as a column of strings."""
    encoded = [value.encode() for value in values]
    ends = np.zeros(len(encoded) + 1, np.int32)
    np.cumsum([len(each) for each in encoded], out=ends[1:])
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(encoded), buffers, 0)


def dictionary(indices: NDArray[np.int32], values: Sequence[str] | pa.Array) -> pa.DictionaryArray:
    """Return a column of the values at these indices, which must be within them."""
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
    """Return a column's numbers, of their own type, shape (rows,); any number where it is null."""
    array = _whole(values)
    data = array.buffers()[1]
    if data is None:
        return np.zeros(len(array), _NUMPY[array.type])
    lying = np.frombuffer(data, _NUMPY[array.type])
    return lying[array.offset : array.offset + len(array)]


def present(values: pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
    """Return where a column is not null, bool of shape (rows,)."""
    array = _whole(values)
    bits = array.buffers()[0] if array.null_count else None
    if bits is None:
        return np.ones(len(array), np.bool_)
    whole = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")
    return whole[array.offset : array.offset + len(array)].view(np.bool_)


def codes(texts: pa.ChunkedArray) -> tuple[NDArray[np.int32], list[str]]:
    """Return a column of a dictionary as places, int32 of shape (rows,), in the list of texts."""
    array = _whole(texts.unify_dictionaries())
    return numbers(array.indices), array.dictionary.to_pylist()


def _whole(values: Any) -> Any:
    if not isinstance(values, pa.ChunkedArray):
        return values
    if values.num_chunks == 1:
        return values.chunk(0)
    # What has no chunks is made by pyarrow.array.
    return values.combine_chunks() if values.num_chunks else _no_values(values.type)


def _no_values(kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return dictionary(np.zeros(0, np.int32), [])
    return column(np.zeros(0, _NUMPY[kind]), kind)
