"""Rounding what is recorded to fewer digits: files of half the size."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trustlens.store.arrow import column, numbers, present

MANTISSA: Final = 23
"""Bits of a float32's mantissa that are stored."""

_INFINITE: Final = np.uint32(0x7F800000)


def rounded(table: pa.Table, bits: int) -> pa.Table:
    """Return a table whose float32 columns keep ``bits`` of the 23 bits of their mantissas.

    To the nearest, ties to even: the relative error is at most 2^−(bits + 1), of numbers below
    the smallest normal one more. NaN, infinity and null stay as they are.
    """
    columns = [
        _rounded(each, bits) if pa.types.is_float32(each.type) else each for each in table.columns
    ]
    return pa.Table.from_arrays(columns, schema=table.schema)


def _rounded(values: pa.ChunkedArray, bits: int) -> pa.Array:
    null = ~present(values) if values.null_count else None
    return column(round_mantissa(numbers(values), bits), pa.float32(), null)


def round_mantissa(values: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Return float32 values with mantissas of so many bits, of the same shape."""
    if bits == MANTISSA:
        return values
    whole = values.view(np.uint32)
    dropped = np.uint32(MANTISSA - bits)
    half = np.uint32((1 << (MANTISSA - bits - 1)) - 1)
    even = (whole >> dropped) & np.uint32(1)
    made = (whole + half + even) >> dropped << dropped
    # What would be infinite, and what is not finite, stays.
    keeps = (made & _INFINITE) == _INFINITE
    return np.where(keeps, whole, made).view(np.float32)
