"""Sealed files: whole tables in Parquet, sorted by layer, then step."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from trustlens.store.layout import SCHEMAS, written_whole

GROUP_ROWS: Final = 16_384
"""Rows of a row group: who reads one layer need not read them all. (Half as many: 1 % larger.)"""


def write_sealed(path: Path, name: str, table: pa.Table) -> None:
    """Write one Parquet file of that table, sorted, whole or not at all."""
    table = table.unify_dictionaries().combine_chunks()
    keys = [column for column in ("layer", "name", "quantity") if column in table.column_names]
    table = table.take(_order(table, [*keys, "step"]))
    with written_whole(path) as temporary:
        pq.write_table(table, temporary, row_group_size=GROUP_ROWS, **_encoding(name))


def _order(table: pa.Table, keys: list[str]) -> pa.Array:
    columns = {
        key: table[key].cast(pa.string()) if pa.types.is_dictionary(table[key].type) else table[key]
        for key in keys
    }
    import pyarrow.compute as pc  # noqa: PLC0415 — by no means at the start of a training

    options = pc.SortOptions(sort_keys=[(key, "ascending") for key in keys])
    return pc.call_function("sort_indices", [pa.table(columns)], options)


def _encoding(name: str) -> dict[str, Any]:
    """Parquet options of a table: floats split by byte, steps by their differences."""
    options: dict[str, Any] = {"compression": "zstd", "compression_level": 3}
    if name == "histograms":
        return options
    encodings: dict[str, str] = {}
    for field in SCHEMAS[name]:
        if pa.types.is_floating(field.type):
            encodings[field.name] = "BYTE_STREAM_SPLIT"
        elif pa.types.is_integer(field.type) or pa.types.is_timestamp(field.type):
            encodings[field.name] = "DELTA_BINARY_PACKED"
    dictionaries = [f.name for f in SCHEMAS[name] if pa.types.is_dictionary(f.type)]
    return {**options, "use_dictionary": dictionaries, "column_encoding": encodings}
