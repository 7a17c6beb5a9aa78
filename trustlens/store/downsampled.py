"""Reading a run's layers in buckets of steps: a bounded amount, however long the run is.

What there is comes from the coarsest level of the overview that is fine enough; the newest part of
it, which has no such buckets yet, from finer ones, and what is not sealed from the journal.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trustlens.errors import UsageError
from trustlens.store.arrow import codes, no_rows, numbers
from trustlens.store.layout import OVERVIEW, SCHEMAS
from trustlens.store.location import Entry
from trustlens.store.overview.buckets import Buckets, singles
from trustlens.store.overview.format import SCHEMA, Piece, kept_in
from trustlens.store.reader import RunFiles
from trustlens.store.row_filter import RowFilter
from trustlens.store.validation import LAST_STEP

_FINER: Final = 2
"""Buckets are read up to so many times as fine as asked for: powers of 4 come nearest so."""


def check_view(points: Any, steps: Any) -> None:
    """Refuse numbers of points, and pairs of a first and a last step, of which there is no view.

    Raises
    ------
    UsageError
        They are such; the message says what was received.
    """
    if not _are_whole([points], least=1, count=1):
        raise UsageError(f"points={points!r} cannot be shown; give a whole number, 1 or more")
    if steps is not None and not _are_whole(steps, least=-LAST_STEP, count=2):
        raise UsageError(f"steps={steps!r} is no span; give its first and last step: (1, 100)")


def _are_whole(values: Any, *, least: int, count: int) -> bool:
    """Tell whether values are so many whole numbers, ascending, that steps can be."""
    try:
        bounded = [least, *(index(value) for value in values), LAST_STEP]
    except TypeError:
        return False
    return len(bounded) == count + 2 and bounded == sorted(bounded)


@dataclass(frozen=True, slots=True)
class Downsampled:
    """One quantity in b buckets of ``width`` steps, of n layers.

    Attributes
    ----------
    steps : int64 (b,)
        The first step of each bucket.
    width : int
        Steps of a bucket.
    rows, finite : int64 (b, n)
        How many rows have the quantity, and how many of these a finite value.
    mean : float64 (b, n)
        Of the finite values; NaN where there is none.
    low, high : float64 (b, n), optional
        The least and the greatest of them, if they were asked for. The overview has float32:
        counts above 2^24 are rounded to it.
    """

    steps: NDArray[np.int64]
    width: int
    rows: NDArray[np.int64]
    finite: NDArray[np.int64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64] | None
    high: NDArray[np.float64] | None


def read_downsampled(
    files: RunFiles,
    quantities: Sequence[str],
    layers: Sequence[str],
    span: tuple[int, int],
    points: int,
    *,
    extremes: bool = True,
) -> dict[str, Downsampled]:
    """Read quantities from one step to another in at most ``points`` buckets, all in the same.

    Parameters
    ----------
    files : RunFiles
        The run's.
    quantities : sequence of str
        Recorded quantities.
    layers : sequence of str
        The layers wanted, in the order of the columns.
    span : (int, int)
        The first and the last step wanted. The buckets that they lie in are whole.
    points : int
        Buckets wanted; there are no fewer than half as many where the overview is that fine.
    extremes : bool
        Whether ``low`` and ``high`` are wanted.

    Raises
    ------
    RunError
        A file is damaged; the message names it.
    """
    return files.consistently(
        lambda: _read(files, quantities, layers, span, points, extremes=extremes)
    )


def _read(
    files: RunFiles,
    quantities: Sequence[str],
    layers: Sequence[str],
    span: tuple[int, int],
    points: int,
    *,
    extremes: bool,
) -> dict[str, Downsampled]:
    # The overview is listed before what it is made of: what is sealed meanwhile is not lacking.
    pieces = files.pieces()
    level, begin, width = _divided({piece.level for piece in pieces}, span, points)
    buckets = (span[1] - begin) // width + 1
    grids = {
        quantity: _Grid(begin, buckets, width, layers, extremes=extremes) for quantity in quantities
    }
    sealed, journalled = files.contents("layers")
    rows = RowFilter(begin, begin + buckets * width - 1, texts={"layer": frozenset(layers)})

    def add_rows(part: pa.Table | None) -> None:
        if part is not None:
            for quantity, grid in grids.items():
                grid.add(_Part.of(part, singles(part[quantity])))

    cover = list(_cover(pieces, sealed, level))
    if not files.directory.is_remote:  # listing again is slow there
        now = files.pieces()  # what is remembered would not show that a rewind took it away
        if any(now.get(each) != pieces[each] for each in cover if isinstance(each, Piece)):
            raise FileNotFoundError(OVERVIEW)
    for found in cover:
        if isinstance(found, Piece):
            for quantity, grid in grids.items():
                grid.add(_piece(files, found, pieces[found], quantity, rows, extremes=extremes))
        else:
            wanted = ["layer", "step", *quantities]
            add_rows(files.read_file("layers", sealed[found], SCHEMAS["layers"], wanted, rows))
    for journal in journalled:
        add_rows(rows.of(journal))
    return {quantity: grid.result() for quantity, grid in grids.items()}


@dataclass(frozen=True, slots=True)
class _Part:
    """What is kept of n rows, with the step of each, and its layer as a place among the names."""

    names: tuple[str, ...]
    layer: NDArray[np.int32]
    step: NDArray[np.int64]
    kept: Buckets

    @classmethod
    def of(cls, rows: pa.Table, kept: Buckets) -> _Part:
        layer, names = codes(rows["layer"])
        return cls(tuple(names), layer, numbers(rows["step"]), kept)

    @property
    def nbytes(self) -> int:
        names = sum(map(len, self.names))
        return names + self.layer.nbytes + self.step.nbytes + self.kept.nbytes

    def at(self, where: NDArray[np.bool_]) -> _Part:
        """Return those of these rows."""
        return _Part(self.names, self.layer[where], self.step[where], self.kept.at(where))


def _piece(
    files: RunFiles, piece: Piece, entry: Entry, quantity: str, rows: RowFilter, *, extremes: bool
) -> _Part | None:
    """Return what a file of the overview has of a quantity, if it may have such rows."""
    folder = f"{OVERVIEW}/{piece.level}"
    span = files.span_of(folder, entry)
    if span is None or not rows.may_be_between(*span):
        return None

    def read() -> _Part:
        columns = ["layer", "step", "rows", "finite", "mean", *(("min", "max") if extremes else ())]
        whole = RowFilter(texts={"quantity": (quantity,)})  # of all layers: that is unpacked anyway
        part = files.read_file(folder, entry, SCHEMA, columns, whole)
        part = no_rows(SCHEMA) if part is None else part
        return _Part.of(part, kept_in(part))

    return files.cached(entry, (folder, quantity, extremes), read)


def _divided(levels: Collection[int], span: tuple[int, int], points: int) -> tuple[int, int, int]:
    """Return the level of the overview to read, and from where on how wide buckets are to be."""

    def units(level: int) -> int:
        return ((span[1] - 1) >> 2 * level) - ((span[0] - 1) >> 2 * level) + 1

    few = [level for level in levels if units(level) <= _FINER * points]
    level = min(few, default=max(levels, default=0))
    begin = ((span[0] - 1) >> 2 * level << 2 * level) + 1
    return level, begin, -(-units(level) // points) << 2 * level


def _cover(pieces: Collection[Piece], sealed: Collection[int], level: int) -> Iterator[Piece | int]:
    """Yield files that have every row once: of the level or finer ones, else sealed files."""
    best: dict[int, Piece] = {}
    fine = [piece for piece in pieces if piece.level <= level]
    for piece in sorted(fine, key=lambda piece: (piece.level, piece.last)):
        best[piece.first] = piece  # the coarsest, and of these the largest
    numbers = sorted(sealed)
    end = numbers[-1] + 1 if numbers else 0
    covered = 0  # all before it are
    for first in sorted({*best, end}):
        if covered <= first <= end:
            yield from numbers[bisect_left(numbers, covered) : bisect_left(numbers, first)]
            if first < end:
                yield best[first]
                covered = best[first].last + 1


class _Grid:
    """Buckets × layers, to which what is read is added."""

    def __init__(
        self, first: int, buckets: int, width: int, layers: Sequence[str], *, extremes: bool
    ) -> None:
        self.first, self.last = first, first + buckets * width - 1
        self._width = width
        self._shape = (buckets, len(layers))
        self._places = {name: place for place, name in enumerate(layers)}
        self._names: tuple[str, ...] = ()
        self._of_names = np.zeros(0, np.int64)
        size = buckets * len(layers)
        self._rows, self._finite, self._total = np.zeros((3, size))
        self._low = np.full(size, np.inf) if extremes else None
        self._high = np.full(size, -np.inf) if extremes else None

    def add(self, part: _Part | None) -> None:
        """Add what is kept of those rows that are of these steps and layers."""
        if part is None:
            return
        columns = self._columns(part.names)
        if (columns < 0).any():
            part = part.at((columns >= 0)[part.layer])
        if len(part.step) and not self.first <= part.step.min() <= part.step.max() <= self.last:
            part = part.at((self.first <= part.step) & (part.step <= self.last))
        if not len(part.step):
            return
        bucket = (part.step - self.first) // self._width
        begin, end = int(bucket.min()), int(bucket.max()) + 1  # of what is changed
        at = (bucket - begin) * self._shape[1] + columns[part.layer]
        there = slice(begin * self._shape[1], end * self._shape[1])
        size = there.stop - there.start
        self._rows[there] += np.bincount(at, part.kept.rows, size)
        self._finite[there] += np.bincount(at, part.kept.finite, size)
        self._total[there] += np.bincount(at, part.kept.total, size)
        if self._low is not None and self._high is not None:
            np.minimum.at(self._low[there], at, part.kept.low)
            np.maximum.at(self._high[there], at, part.kept.high)

    def _columns(self, names: tuple[str, ...]) -> NDArray[np.int64]:
        """Return the columns of layers of these names; −1 for those that are not wanted."""
        if names != self._names:  # most parts have the same
            self._names = names
            self._of_names = np.array([self._places.get(name, -1) for name in names], np.int64)
        return self._of_names

    def result(self) -> Downsampled:
        """Return what was added, as one."""
        none = self._finite == 0
        with np.errstate(invalid="ignore"):
            mean = self._total / self._finite

        def extreme(values: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
            if values is None:
                return None
            values[none] = np.nan
            return values.reshape(self._shape)

        return Downsampled(
            np.arange(self._shape[0], dtype=np.int64) * self._width + self.first,
            self._width,
            self._rows.astype(np.int64).reshape(self._shape),
            self._finite.astype(np.int64).reshape(self._shape),
            mean.reshape(self._shape),
            extreme(self._low),
            extreme(self._high),
        )
