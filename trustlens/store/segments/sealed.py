"""Writing sealed segments: Parquet files, sorted by their text columns, then by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trustlens.store.arrow import codes, column, numbers
from trustlens.store.atomic_write import atomic_write
from trustlens.store.layout import SCHEMAS
from trustlens.store.segments.row_groups import alphabetical_ranks, groups_metadata, groups_of

GROUP_ROWS: Final = 16_384
"""Number of rows of a row group. A reader of one layer skips the row groups without that layer. If
row groups had half as many rows, files would be 1 % larger."""


def write_sealed(path: Path, name: str, table: pa.Table) -> pa.Table:
    """Sort rows, write them atomically as a segment of table ``name``, and return them."""
    keys = [key for key in ("layer", "name", "quantity") if key in table.column_names]
    table = table.unify_dictionaries().combine_chunks()
    table = table.take(column(_order(table, keys), pa.int64()))
    groups = groups_of(table, keys[0] if keys else None, GROUP_ROWS)
    table = table.replace_schema_metadata(groups_metadata(groups))
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, row_group_size=GROUP_ROWS, **_encoding(name))
    return table


def _order(table: pa.Table, keys: list[str]) -> NDArray[np.int64]:
    """Return the indices, int64 (rows,), that sort rows by the columns ``keys``, then by step."""
    ranks = [numbers(table["step"])]
    for key in reversed(keys):
        places, texts = codes(table[key])
        ranks.append(alphabetical_ranks(texts)[places])
    return np.lexsort(ranks)


def _encoding(name: str) -> dict[str, Any]:
    """Return the Parquet options: floats are split into bytes, integers stored as differences."""
    dictionaries = [f.name for f in SCHEMAS[name] if pa.types.is_dictionary(f.type)]
    options: dict[str, Any] = {
        "compression": "zstd",
        "compression_level": 3,
        "write_statistics": ["step", *dictionaries],  # for other readers, such as DuckDB
    }
    if name == "histograms":
        return options
    encodings: dict[str, str] = {}
    for field in SCHEMAS[name]:
        if pa.types.is_floating(field.type):
            encodings[field.name] = "BYTE_STREAM_SPLIT"
        elif pa.types.is_integer(field.type) or pa.types.is_timestamp(field.type):
            encodings[field.name] = "DELTA_BINARY_PACKED"
    return {**options, "use_dictionary": dictionaries, "column_encoding": encodings}
