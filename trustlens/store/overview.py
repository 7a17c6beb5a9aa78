"""The overview: a run's ``layers`` at coarser steps, so that any view of it reads a bounded amount.

::

    overview/<k>/<first>-<last>.parquet    buckets of 4^k steps, of the sealed files so numbered

One row for each quantity, layer and bucket that has a value; the bucket of a step is
(step − 1) // 4^k. On the finest level each sealed file has one such file, on each coarser level
four times as many sealed files share one, so that all are of much the same size; four neighbours
of a level are joined into one now and then, so that they stay few. A bucket that two sealed files
share has a row in each of their files: whoever reads adds them up.

All of it follows from the sealed files. What is missing is made when one is sealed next, by
``repair`` or by the close; where it is missing, a reader takes the sealed files themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trustlens.schema import RECORDED
from trustlens.store.buckets import Buckets, buckets_of, starts_of
from trustlens.store.columns import codes, column, dictionary, no_rows, numbers
from trustlens.store.layout import OVERVIEW, RunInfo, sealed_path, written_whole
from trustlens.store.places import Entry, Place, entries
from trustlens.store.reader import journal_numbers, read_sealed, sealed_numbers

FINEST: Final = 3
"""Exponent of the finest buckets where every step is recorded: 64 recorded steps."""

_GROUP_ROWS: Final = 32_768
"""Rows of a row group at most: who reads one layer in fine buckets need not read them all."""

_JOINS: Final = 3  # times that four neighbours of a level become one: at most 64 of the smallest

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
"""Of a bucket: its first step, how many of its rows have the quantity and how many of these a
finite value, and the least, the mean and the greatest of those; null if there are none."""

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
    """Return the exponent of a run's finest buckets, which hold at least 16 recorded steps."""
    every = max(1, int(info.recorder.get("every", 1)))
    return FINEST + (every - 1).bit_length() // 2


def pieces(directory: Place) -> list[Piece]:
    """Return the files of a run's overview."""
    levels = [entry.name for entry in entries(directory / OVERVIEW) if entry.name.isdecimal()]
    return [
        piece
        for level in levels
        for piece, _ in matched(int(level), entries(directory / OVERVIEW / level))
    ]


def matched(level: int, found: Sequence[Entry]) -> Iterator[tuple[Piece, Entry]]:
    """Yield those of the entries of a level's folder that are files of the overview."""
    for entry in found:
        match = _FILE.fullmatch(entry.name)
        if match:
            yield Piece(level, *map(int, match.groups())), entry


def complete(directory: Path, finest: int, *, most: int | None = None) -> None:
    """Make what is missing of a run's overview; who calls has the run's lock.

    Parameters
    ----------
    directory : Path
        The run.
    finest : int
        The exponent of the finest buckets, unless the run has an overview already.
    most : int, optional
        How many sealed files to read for it at most; all that are not in it if not given.

    Raises
    ------
    OSError
        There is no room for it, or it cannot be written.
    RunError
        A file cannot be read.
    """
    there = pieces(directory)
    finest = min((piece.level for piece in there), default=finest)
    sealed = sealed_numbers(directory, "layers")
    unsealed = journal_numbers(directory, "layers") - sealed
    whole = min(unsealed, default=max(sealed, default=-1) + 1)  # all before it are sealed
    missing = sorted(n for n in sealed if n < whole and not _covers(there, finest, n))
    for number in missing[:most]:
        rows = read_sealed(sealed_path(directory, "layers", number), "layers")
        there.append(_write(directory, Piece(finest, number, number), of_rows(rows, finest)))
    coarser = [finest + n for n in range(1, 32) if 4**n <= whole]
    for level in coarser:
        size = 4 ** (level - finest)
        for first in range(_covered_to(there, level), whole - size + 1, size):
            piece = Piece(level, first, first + size - 1)
            if not _covers(there, level, first):
                there += _made_of(directory, there, piece, level - 1)
    for level in (finest, *coarser):
        _join(directory, there, level, 4 ** (level - finest))


def forget(directory: Path, number: int) -> None:
    """Take away what was made of the sealed file of that number, and of those behind it."""
    for piece in pieces(directory):
        if piece.last >= number:
            with suppress(FileNotFoundError):
                piece.path(directory).unlink()


def _covers(there: Sequence[Piece], level: int, number: int) -> bool:
    return any(p.level == level and p.first <= number <= p.last for p in there)


def _covered_to(there: Sequence[Piece], level: int) -> int:
    """Return the number of the first sealed file that is not in a level."""
    end = 0
    for piece in sorted(piece for piece in there if piece.level == level):
        if piece.first > end:
            break
        end = max(end, piece.last + 1)
    return end


def _join(directory: Path, there: list[Piece], level: int, smallest: int) -> None:
    """Have four neighbours of a level be one file, and four of those."""
    for size in [smallest * 4**times for times in range(1, _JOINS + 1)]:
        small = {p.first // size for p in there if p.level == level and p.count < size}
        for first in [place * size for place in sorted(small)]:
            piece = Piece(level, first, first + size - 1)
            parts = _within(there, piece, level)
            made = _made_of(directory, there, piece, level)
            there += made
            for part in parts if made else ():
                there.remove(part)
                with suppress(FileNotFoundError):
                    part.path(directory).unlink()


def _within(there: Sequence[Piece], piece: Piece, level: int) -> list[Piece]:
    return sorted(
        p for p in there if p.level == level and piece.first <= p.first and p.last <= piece.last
    )


def _made_of(directory: Path, there: Sequence[Piece], piece: Piece, level: int) -> list[Piece]:
    """Make a file of those of a level; return it, or nothing where those do not cover it."""
    parts = _within(there, piece, level)
    if not parts or sum(part.count for part in parts) < piece.count:
        return []
    rows = [pq.ParquetFile(part.path(directory)).read().cast(SCHEMA) for part in parts]
    return [_write(directory, piece, merged(pa.concat_tables(rows), piece.level))]


def _write(directory: Path, piece: Piece, rows: pa.Table) -> Piece:
    path = piece.path(directory)
    path.parent.mkdir(parents=True, exist_ok=True)
    floats = dict.fromkeys(("min", "mean", "max"), "BYTE_STREAM_SPLIT")
    integers = dict.fromkeys(("step", "rows", "finite"), "DELTA_BINARY_PACKED")
    options: dict[str, Any] = {
        "compression": "zstd",
        "compression_level": 3,
        "use_dictionary": ["quantity", "layer"],
        "column_encoding": {**floats, **integers},
    }
    starts = starts_of(codes(rows["quantity"])[0])
    ends = [*starts[1:].tolist(), rows.num_rows]
    with (
        written_whole(path) as temporary,
        pq.ParquetWriter(temporary, SCHEMA, **options) as writer,
    ):
        for start, end in zip(starts.tolist(), ends, strict=False):  # none has two quantities
            writer.write_table(rows.slice(start, end - start), row_group_size=_GROUP_ROWS)
    return piece


def of_rows(rows: pa.Table, level: int) -> pa.Table:
    """Return the buckets of 4^level steps of rows that are sorted by layer and step."""
    layer, names = codes(rows["layer"])
    bucket = bucket_of(rows["step"], level)
    starts = starts_of(layer, bucket)
    layer, bucket = layer[starts], bucket[starts]
    parts = [no_rows(SCHEMA)]
    for place, name in enumerate(RECORDED):
        made = buckets_of(rows[name], starts)
        there = made.rows > 0
        quantity = np.full(np.count_nonzero(there), place, np.int32)
        parts.append(
            _table(
                dictionary(quantity, RECORDED),
                dictionary(layer[there], names),
                bucket[there],
                level,
                made.at(there),
            )
        )
    return pa.concat_tables(parts).unify_dictionaries().combine_chunks()


def merged(rows: pa.Table, level: int) -> pa.Table:
    """Return buckets joined into those of 4^level steps, sorted by quantity, layer and step."""
    (quantity, quantities), (layer, names) = codes(rows["quantity"]), codes(rows["layer"])
    alphabetic = np.argsort(np.argsort(np.array(names, np.str_)))[layer]
    bucket = bucket_of(rows["step"], level)
    order = np.lexsort((bucket, alphabetic, quantity))
    quantity, layer, bucket = quantity[order], layer[order], bucket[order]
    starts = starts_of(quantity, layer, bucket)
    return _table(
        dictionary(quantity[starts], quantities),
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
    quantity: pa.Array, layer: pa.Array, bucket: NDArray[np.int64], level: int, kept: Buckets
) -> pa.Table:
    none = kept.finite == 0
    values = (kept.low, kept.mean, kept.high)
    return pa.Table.from_arrays(
        [
            quantity,
            layer,
            column((bucket << (2 * level)) + 1, pa.int64()),
            column(kept.rows.astype(np.int32), pa.int32()),
            column(kept.finite.astype(np.int32), pa.int32()),
            *(column(each.astype(np.float32), pa.float32(), none) for each in values),
        ],
        schema=SCHEMA,
    )
