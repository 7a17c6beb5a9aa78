"""The overview: a run's ``layers`` at coarser steps, so that any view of it reads a bounded amount.

::

    overview/<k>/<first>-<last>.parquet    buckets of 4^k steps, of the sealed files so numbered

One row for each quantity, layer and bucket that has a value; the bucket of a step is
(step − 1) // 4^k. On the finest level each sealed file has one such file, on each coarser level
four times as many sealed files share one, so that all are of much the same size; sixteen of a
level are joined into one in time, so that they stay few. A bucket that two sealed files share has
a row in each of their files: whoever reads adds them up.

All of it follows from the sealed files. Where it is missing, a reader takes these themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trustlens.schema import RECORDED
from trustlens.store.arrow import codes, column, dictionary, no_rows, numbers, texts
from trustlens.store.atomic_write import atomic_write
from trustlens.store.damage import damage_reported
from trustlens.store.layout import OVERVIEW
from trustlens.store.location import LocalLocation
from trustlens.store.overview.buckets import Buckets, buckets_of, starts_of
from trustlens.store.run_info import RunInfo
from trustlens.store.segments.row_groups import (
    Group,
    Sealed,
    alphabetic,
    groups_of,
    read_groups,
    read_sealed_files,
    sealed_written,
    written,
)
from trustlens.store.validation import check_rows

FINEST: Final = 3
"""Exponent of the finest buckets where every step is recorded: 64 recorded steps."""

_GROUP_ROWS: Final = 32_768
"""Rows of a row group at most: who reads one layer in fine buckets need not read them all."""

_NAME: Final = pa.dictionary(pa.int32(), pa.string())
SCHEMA: Final = pa.schema(
    [
        pa.field("quantity", _NAME, nullable=False),
        pa.field("layer", _NAME, nullable=False),
        pa.field("step", pa.int64(), nullable=False),
        pa.field("rows", pa.int32(), nullable=False),
        pa.field("finite", pa.int32(), nullable=False),
        pa.field("min", pa.float32()),
        pa.field("mean", pa.float32()),
        pa.field("max", pa.float32()),
    ]
)
"""One row per bucket: its first step; the number of rows that have the quantity; the number of rows
whose value is finite; minimum, mean and maximum of the finite values (null if there are none). All
three are float32: extremes of counts above 2^24 are rounded."""

_LEVELS: Final = frozenset(map(str, range(1, 27)))  # of no more steps than there may be
_FILE: Final = re.compile(r"(\d{6,18})-(\d{6,18})\.parquet")


@dataclass(frozen=True, slots=True, order=True)
class Piece:
    """A file of the overview: its level k, and the numbers of the sealed files it is made of."""

    level: int
    first: int
    last: int

    @property
    def count(self) -> int:
        """How many sealed files it is made of."""
        return self.last - self.first + 1

    @property
    def name(self) -> str:
        """Its file's name within the folder of its level."""
        return f"{self.first:06d}-{self.last:06d}.parquet"

    def path(self, directory: Path) -> Path:
        """Return where it lies in a run."""
        return directory / OVERVIEW / str(self.level) / self.name


def finest_level(info: RunInfo) -> int:
    """Return the exponent of a run's finest buckets, which hold 64 to 256 recorded steps."""
    return FINEST + ((info.recording.every - 1).bit_length() + 1) // 2


def pieces(directory: Path) -> list[Piece]:
    """Return the files of a run's overview."""
    overview = LocalLocation(directory / OVERVIEW)
    levels = [name for name in overview.names() if is_level(name)]
    return [
        piece
        for level in levels
        for name in (overview / level).names()
        if (piece := piece_of(int(level), name)) is not None
    ]


def is_level(name: str) -> bool:
    """Tell whether a folder of the overview of that name is one of a level."""
    return name in _LEVELS


def piece_of(level: int, name: str) -> Piece | None:
    """Return which piece a file of that name in a level's folder is, if it is one."""
    match = _FILE.fullmatch(name)
    piece = Piece(level, *map(int, match.groups())) if match else None
    return piece if piece is not None and piece.first <= piece.last else None


def forget(directory: Path, number: int) -> None:
    """Remove the files that were made from the segment of that number, and of those after it."""
    for piece in pieces(directory):
        if piece.last >= number:
            with suppress(FileNotFoundError):
                piece.path(directory).unlink()


def write_piece(
    directory: Path,
    piece: Piece,
    by_quantity: Iterable[pa.Table],
    sealed: Sequence[Sealed],
    *,
    is_final: bool,
) -> None:
    """Write a file of the overview, of the rows of one quantity after another.

    It tells of the sealed files that it is made of. Unless it ``is_final`` it will soon be joined
    with others, and is written quickly.
    """
    path = piece.path(directory)
    path.parent.mkdir(parents=True, exist_ok=True)
    floats = dict.fromkeys(("min", "mean", "max"), "BYTE_STREAM_SPLIT")
    integers = dict.fromkeys(("step", "rows", "finite"), "DELTA_BINARY_PACKED")
    options: dict[str, Any] = {
        **({"compression": "zstd", "compression_level": 3} if is_final else {"compression": "lz4"}),
        "use_dictionary": ["quantity", "layer"],
        "column_encoding": {**floats, **integers},
        "write_statistics": ["quantity", "layer", "step"],
    }
    with (
        atomic_write(path) as temporary,
        pq.ParquetWriter(temporary, SCHEMA, **options) as writer,
    ):
        groups: list[Group] = []
        for rows in by_quantity:  # no row group has two
            if rows.num_rows:
                writer.write_table(rows, row_group_size=_GROUP_ROWS)
                groups += groups_of(rows, "quantity", _GROUP_ROWS)
        writer.add_key_value_metadata({**written(groups), **sealed_written(sealed)})


def read_pieces(directory: Path, given: Sequence[Piece]) -> Iterator[pa.Table]:
    """Yield the rows of each quantity in files of the overview, file after file.

    Raises
    ------
    RunError
        One of them is damaged.
    """
    with ExitStack() as opened:
        files: list[tuple[Path, pq.ParquetFile, dict[str, list[int]]]] = []
        for path in [piece.path(directory) for piece in given]:
            file = opened.enter_context(_opened(path))
            files.append((path, file, _places(file.metadata)))
        for name in RECORDED:
            found = [no_rows(SCHEMA)]
            for path, file, places in files:
                if name in places:
                    with _reading(path):
                        rows = file.read_row_groups(places[name], use_threads=False)
                        found.append(check_rows(rows, SCHEMA))
            yield pa.concat_tables(found)


def sealed_of(directory: Path, given: Sequence[Piece]) -> list[Sealed]:
    """Return the sealed files that files of the overview tell of.

    Raises
    ------
    RunError
        One of them is damaged.
    """
    found: list[Sealed] = []
    for piece in given:
        with _opened(piece.path(directory)) as file:
            found += read_sealed_files(file.metadata)
    return found


def _opened(path: Path) -> pq.ParquetFile:
    with _reading(path):
        return pq.ParquetFile(path)


def _reading(path: Path) -> AbstractContextManager[None]:
    # It is made from sealed segments, and made again if it is missing.
    return damage_reported(LocalLocation(path), remedy="remove it")


def _places(metadata: pq.FileMetaData) -> dict[str, list[int]]:
    """Return the places of each quantity's row groups."""
    found: dict[str, list[int]] = {}
    for place, group in enumerate(read_groups(metadata) or ()):
        if group.texts is not None:
            found.setdefault(group.texts[0], []).append(place)
    return found


def of_rows(rows: pa.Table, level: int) -> Iterator[pa.Table]:
    """Yield the buckets of 4^level steps of each quantity, of rows sorted by layer and step."""
    layer, names = codes(rows["layer"])
    bucket = bucket_of(rows["step"], level)
    starts = starts_of(layer, bucket)
    layer, bucket = layer[starts], bucket[starts]
    layers = texts(names)
    for name in RECORDED:
        made = buckets_of(rows[name], starts)
        there = made.rows > 0
        yield _table(name, dictionary(layer[there], layers), bucket[there], level, made.at(there))


def merged(rows: pa.Table, level: int) -> pa.Table:
    """Return one quantity's buckets joined into those of 4^level steps, by layer and step."""
    if not rows.num_rows:
        return rows
    layer, names = codes(rows["layer"])
    bucket = bucket_of(rows["step"], level)
    # Stable, since that is quick where some pieces lie in order one behind the other, as here.
    order = np.argsort(alphabetic(names)[layer] * (bucket.max() + 1) + bucket, kind="stable")
    layer, bucket = layer[order], bucket[order]
    starts = starts_of(layer, bucket)
    return _table(
        rows["quantity"][0].as_py(),
        dictionary(layer[starts], names),
        bucket[starts],
        level,
        kept_in(rows).at(order).joined(starts),
    )


def bucket_of(step: pa.ChunkedArray, level: int) -> NDArray[np.int64]:
    """Return the number of the bucket of 4^level steps that each step is in."""
    return (numbers(step) - 1) >> (2 * level)


def kept_in(rows: pa.Table) -> Buckets:
    """Return what rows of the overview hold; without ``min`` and ``max`` no extremes."""
    finite = numbers(rows["finite"]).astype(np.int64)
    none = finite == 0

    def values(name: str, instead: float) -> NDArray[np.float64]:
        if name not in rows.column_names:
            return np.full(len(finite), instead)
        return np.where(none, instead, numbers(rows[name]).astype(np.float64))

    return Buckets(
        numbers(rows["rows"]).astype(np.int64),
        finite,
        values("min", np.inf),
        values("max", -np.inf),
        values("mean", 0.0) * finite,
    )


def _table(
    quantity: str, layer: pa.Array, bucket: NDArray[np.int64], level: int, kept: Buckets
) -> pa.Table:
    none = kept.finite == 0
    values = (kept.low, kept.mean, kept.high)
    return pa.Table.from_arrays(
        [
            dictionary(np.zeros(len(layer), np.int32), [quantity]),
            layer,
            column((bucket << (2 * level)) + 1, pa.int64()),
            column(kept.rows.astype(np.int32), pa.int32()),
            column(kept.finite.astype(np.int32), pa.int32()),
            *(column(each.astype(np.float32), pa.float32(), none) for each in values),
        ],
        schema=SCHEMA,
    )
