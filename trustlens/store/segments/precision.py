"""Rounding float32 columns to fewer mantissa bits, so that the files are half as large."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trustlens.store.arrow import column, numbers, present

MANTISSA: Final = 23
"""Number of mantissa bits that a float32 stores."""

_INFINITE: Final = np.uint32(0x7F800000)


def round_floats(table: pa.Table, bits: int) -> pa.Table:
    """Round the float32 columns of a table to ``bits`` mantissa bits, instead of 23.

    Values are rounded to nearest, ties to even. The relative error is at most 2^−(bits + 1), except
    for subnormal values, where it may be larger. NaN, infinity and null are not changed.
    Finite values that would round to infinity are not changed either.
    """
    columns = [
        _round_column(each, bits) if pa.types.is_float32(each.type) else each
        for each in table.columns
    ]
    return pa.Table.from_arrays(columns, schema=table.schema)


def _round_column(values: pa.ChunkedArray, bits: int) -> pa.Array:
    null = ~present(values) if values.null_count else None
    return column(round_mantissa(numbers(values), bits), pa.float32(), null)


def round_mantissa(values: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Return float32 values rounded to ``bits`` mantissa bits, in the same shape."""
    if bits == MANTISSA:
        return values
    words = values.view(np.uint32)
    dropped = np.uint32(MANTISSA - bits)
    half = np.uint32((1 << (MANTISSA - bits - 1)) - 1)
    even = (words >> dropped) & np.uint32(1)
    result = (words + half + even) >> dropped << dropped
    # Values that are not finite, or would round to infinity, are not changed.
    unchanged = (result & _INFINITE) == _INFINITE
    return np.where(unchanged, words, result).view(np.float32)
