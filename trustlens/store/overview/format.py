"""The files of the overview, which holds a run's table ``layers`` downsampled to buckets of steps.

With the overview, plotting a long run reads no more data than plotting a short run. ::

    overview/<k>/<first>-<last>.parquet    segments <first> to <last>, in buckets of 4^k steps

The number k is the level of the file. At level k, step s is in bucket (s − 1) // 4^k. A file has
one row for each quantity, layer and bucket that has a value.

At the finest level, a file covers one segment. At each coarser level, a file covers four times as
many, so that all files are of similar size. When 16 adjacent files of a level are complete, they
are joined into one, so that there are few files. If two files have a row for the same bucket,
because both cover steps of this bucket, the reader merges the two rows.

The overview is made from the sealed segments. If an overview file is missing, the reader reads the
segments instead.
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
    alphabetical_ranks,
    groups_metadata,
    groups_of,
    read_groups,
    read_sealed_files,
    segments_metadata,
)
from trustlens.store.validation import check_rows

FINEST: Final = 3
"""The finest level if every step is recorded: its buckets have 4^3 = 64 steps."""

_GROUP_ROWS: Final = 32_768
"""Maximum number of rows of a row group. A reader of one layer skips those without it."""

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
"""Each row is a bucket of one quantity of one layer. ``step`` is the first step of the bucket.
``rows`` is the number of values that are not null, ``finite`` the number of finite values. ``min``,
``mean`` and ``max`` are those of the finite values; they are null if no value is finite. Integers
above 2^24 are rounded to float32."""

_LEVELS: Final = frozenset(map(str, range(1, 27)))  # level 26: 2^52 steps, half of LAST_STEP
_FILE: Final = re.compile(r"(\d{6,18})-(\d{6,18})\.parquet")


@dataclass(frozen=True, slots=True, order=True)
class Piece:
    """A file of the overview: the level k, and the first and last segment that it covers."""

    level: int
    first: int
    last: int

    @property
    def count(self) -> int:
        """Number of segments that the file covers."""
        return self.last - self.first + 1

    @property
    def name(self) -> str:
        """The name of the file in the folder of its level."""
        return f"{self.first:06d}-{self.last:06d}.parquet"

    def path(self, directory: Path) -> Path:
        """Return the path of the file in the run at ``directory``."""
        return directory / OVERVIEW / str(self.level) / self.name


def finest_level(info: RunInfo) -> int:
    """Return the finest level for a run: a bucket of this level has 64 to 256 recorded steps."""
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
    """Return whether a folder of the overview with this name is the folder of a level."""
    return name in _LEVELS


def piece_of(level: int, name: str) -> Piece | None:
    """Parse the name of a file in a level's folder; None if it does not name an overview file."""
    match = _FILE.fullmatch(name)
    piece = Piece(level, *map(int, match.groups())) if match else None
    return piece if piece is not None and piece.first <= piece.last else None


def remove_pieces_from(directory: Path, number: int) -> None:
    """Remove the overview files that cover segment ``number`` or a later segment."""
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
    """Write a file of the overview, which holds downsampled rows of ``layers``.

    Parameters
    ----------
    directory : Path
        The directory of the run.
    piece : Piece
        Which file to write.
    by_quantity : iterable of pyarrow.Table
        One table for each quantity, with `SCHEMA`.
    sealed : sequence of Sealed
        The segments that the rows were made from. They are listed in the metadata of the file.
    is_final : bool
        False if the file will be joined with others later. Then a faster compression is used, which
        makes the file larger.
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
        for rows in by_quantity:  # each row group has one quantity
            if rows.num_rows:
                writer.write_table(rows, row_group_size=_GROUP_ROWS)
                groups += groups_of(rows, "quantity", _GROUP_ROWS)
        writer.add_key_value_metadata({**groups_metadata(groups), **segments_metadata(sealed)})


def read_pieces(directory: Path, wanted: Sequence[Piece]) -> Iterator[pa.Table]:
    """Read files of the overview; yield one table for each recorded quantity.

    Each table has the rows of all files, in the order of ``wanted``. A table may be empty.

    Raises
    ------
    RunError
        If a file is damaged.
    """
    with ExitStack() as opened:
        files: list[tuple[Path, pq.ParquetFile, dict[str, list[int]]]] = []
        for path in [piece.path(directory) for piece in wanted]:
            file = opened.enter_context(_open(path))
            files.append((path, file, _row_groups_by_quantity(file.metadata)))
        for name in RECORDED:
            found = [no_rows(SCHEMA)]
            for path, file, groups in files:
                if name in groups:
                    with _report_damage(path):
                        rows = file.read_row_groups(groups[name], use_threads=False)
                        found.append(check_rows(rows, SCHEMA))
            yield pa.concat_tables(found)


def read_sources(directory: Path, wanted: Sequence[Piece]) -> list[Sealed]:
    """Return the segments that are listed in the metadata of files of the overview.

    A file lists the segments that it was made from.

    Raises
    ------
    RunError
        If a file is damaged.
    """
    found: list[Sealed] = []
    for piece in wanted:
        with _open(piece.path(directory)) as file:
            found += read_sealed_files(file.metadata)
    return found


def _open(path: Path) -> pq.ParquetFile:
    with _report_damage(path):
        return pq.ParquetFile(path)


def _report_damage(path: Path) -> AbstractContextManager[None]:
    # The user is told to remove the file: it is built again from the sealed segments.
    return damage_reported(LocalLocation(path), remedy="remove it")


def _row_groups_by_quantity(metadata: pq.FileMetaData) -> dict[str, list[int]]:
    """Return, for each quantity's name, the indices of the row groups that hold the quantity."""
    found: dict[str, list[int]] = {}
    for index, group in enumerate(read_groups(metadata) or ()):
        if group.texts is not None:
            found.setdefault(group.texts[0], []).append(index)
    return found


def downsample(rows: pa.Table, level: int) -> Iterator[pa.Table]:
    """Downsample rows of ``layers`` to buckets of 4^level steps; yield one table for each quantity.

    The rows must be sorted by layer, then step. The tables have `SCHEMA` and the same order.
    """
    layer, names = codes(rows["layer"])
    bucket = bucket_of(rows["step"], level)
    starts = starts_of(layer, bucket)
    layer, bucket = layer[starts], bucket[starts]
    layers = texts(names)
    for name in RECORDED:
        buckets = buckets_of(rows[name], starts)
        valid = buckets.rows > 0
        yield _table(
            name, dictionary(layer[valid], layers), bucket[valid], level, buckets.at(valid)
        )


def merge_buckets(rows: pa.Table, level: int) -> pa.Table:
    """Merge one quantity's buckets into buckets of 4^level steps; sort them by layer, then step."""
    if not rows.num_rows:
        return rows
    layer, names = codes(rows["layer"])
    bucket = bucket_of(rows["step"], level)
    # The rows are sorted parts, one after the other: a stable sort is fast for them.
    order = np.argsort(
        alphabetical_ranks(names)[layer] * (bucket.max() + 1) + bucket, kind="stable"
    )
    layer, bucket = layer[order], bucket[order]
    starts = starts_of(layer, bucket)
    return _table(
        rows["quantity"][0].as_py(),
        dictionary(layer[starts], names),
        bucket[starts],
        level,
        buckets_in(rows).at(order).joined(starts),
    )


def bucket_of(step: pa.ChunkedArray, level: int) -> NDArray[np.int64]:
    """Return each step's bucket index, int64 (rows,), for buckets of 4^level steps."""
    return (numbers(step) - 1) >> (2 * level)


def buckets_in(rows: pa.Table) -> Buckets:
    """Return the buckets that rows of an overview file describe.

    If ``rows`` lacks the columns ``min`` and ``max``, ``low`` is ∞ and ``high`` is −∞.
    """
    finite = numbers(rows["finite"]).astype(np.int64)
    is_empty = finite == 0

    def values(name: str, default: float) -> NDArray[np.float64]:
        if name not in rows.column_names:
            return np.full(len(finite), default)
        return np.where(is_empty, default, numbers(rows[name]).astype(np.float64))

    return Buckets(
        numbers(rows["rows"]).astype(np.int64),
        finite,
        values("min", np.inf),
        values("max", -np.inf),
        values("mean", 0.0) * finite,
    )


def _table(
    quantity: str, layer: pa.Array, bucket: NDArray[np.int64], level: int, buckets: Buckets
) -> pa.Table:
    is_empty = buckets.finite == 0
    values = (buckets.low, buckets.mean, buckets.high)
    return pa.Table.from_arrays(
        [
            dictionary(np.zeros(len(layer), np.int32), [quantity]),
            layer,
            column((bucket << (2 * level)) + 1, pa.int64()),
            column(buckets.rows.astype(np.int32), pa.int32()),
            column(buckets.finite.astype(np.int32), pa.int32()),
            *(column(each.astype(np.float32), pa.float32(), is_empty) for each in values),
        ],
        schema=SCHEMA,
    )
