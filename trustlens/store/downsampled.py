"""Reading the table ``layers`` downsampled to buckets of steps.

The amount of data that is read does not grow with the length of the run. Most buckets are read from
one level of the overview (see ``overview.format``). This level does not have the newest steps yet.
The newest steps are read from finer levels, from sealed segments, and from journals.
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
from trustlens.store.overview.buckets import Buckets, bucket_per_value
from trustlens.store.overview.format import SCHEMA, Piece, buckets_in
from trustlens.store.reader import RunFiles
from trustlens.store.row_filter import RowFilter
from trustlens.store.validation import LAST_STEP

_FINER: Final = 2
"""The finest overview level is read that has at most this many times the requested number of
buckets. If it has more buckets than requested, they are merged. From one level to the next, the
number of buckets changes by a factor of 4: the level has half to twice the requested number, if the
overview has such a level."""


def check_view(points: Any, steps: Any) -> None:
    """Check the arguments with which a user requests downsampled quantities.

    Parameters
    ----------
    points : Any
        The number of buckets.
    steps : Any
        A pair of the first and the last step; None for the whole run.

    Raises
    ------
    UsageError
        If ``points`` is not a positive integer, or ``steps`` is not an ascending pair of integers.
    """
    if not _are_ascending_integers([points], least=1, count=1):
        raise UsageError(f"points={points!r} cannot be shown; give a whole number, 1 or more")
    if steps is not None and not _are_ascending_integers(steps, least=-LAST_STEP, count=2):
        raise UsageError(
            f"steps={steps!r} is not a range of steps; give the first and the last: (1, 100)"
        )


def _are_ascending_integers(values: Any, *, least: int, count: int) -> bool:
    """Return whether ``values`` are ``count`` integers in ascending order.

    Each of them must be at least ``least`` and at most `LAST_STEP`.
    """
    try:
        bounded = [least, *(index(value) for value in values), LAST_STEP]
    except TypeError:
        return False
    return len(bounded) == count + 2 and bounded == sorted(bounded)


@dataclass(frozen=True, slots=True)
class Downsampled:
    """One quantity of n layers, downsampled to b buckets of ``width`` steps each.

    Attributes
    ----------
    steps : int64 (b,)
        The first step of each bucket.
    width : int
        Number of steps in a bucket.
    rows, finite : int64 (b, n)
        ``rows`` is the number of values in the bucket that are not null, ``finite`` the number of
        finite values.
    mean : float64 (b, n)
        Mean of the finite values; NaN for a bucket without finite values.
    low, high : float64 (b, n) or None
        The smallest and the largest finite value; NaN for a bucket without finite values. None if
        they were not requested. The overview stores float32, which rounds integers above 2^24.
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
    """Read quantities in a range of steps, downsampled to at most ``points`` buckets.

    Parameters
    ----------
    files : RunFiles
        The files of the run.
    quantities : sequence of str
        Names of the recorded quantities to read.
    layers : sequence of str
        Names of the layers to read; the columns of the result are in this order.
    span : (int, int)
        The first and the last step. The first bucket may begin before the first step, and the last
        bucket may end after the last step.
    points : int
        Maximum number of buckets. At least half of this number is returned if the overview has a
        level that is fine enough.
    extremes : bool
        Whether to read ``low`` and ``high``.

    Returns
    -------
    dict of str to Downsampled
        The result for each quantity, by its name. All quantities have the same buckets.

    Raises
    ------
    RunError
        If a file is damaged; the message names it.
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
    # The overview is listed before the segments. So a segment that is sealed in between is not
    # covered by the listed overview, and is read directly.
    pieces = files.pieces()
    level, begin, width = _choose_buckets({piece.level for piece in pieces}, span, points)
    buckets = (span[1] - begin) // width + 1
    grids = {
        quantity: _Grid(begin, buckets, width, layers, extremes=extremes) for quantity in quantities
    }
    sealed, journalled = files.contents("layers")
    rows = RowFilter(begin, begin + buckets * width - 1, texts={"layer": frozenset(layers)})

    def add_rows(part: pa.Table | None) -> None:
        if part is not None:
            for quantity, grid in grids.items():
                grid.add(_Part.of(part, bucket_per_value(part[quantity])))

    cover = list(_covering_files(pieces, sealed, level))
    if not files.directory.is_remote:  # listing again is slow on an object store
        # If a rollback removed overview files, their contents may still be in the cache. Then
        # reading them would not raise an error.
        now = files.pieces()
        if any(now.get(each) != pieces[each] for each in cover if isinstance(each, Piece)):
            raise FileNotFoundError(OVERVIEW)
    for found in cover:
        if isinstance(found, Piece):
            for quantity, grid in grids.items():
                grid.add(
                    _read_piece(files, found, pieces[found], quantity, rows, extremes=extremes)
                )
        else:
            wanted = ["layer", "step", *quantities]
            add_rows(files.read_file("layers", sealed[found], SCHEMAS["layers"], wanted, rows))
    for journal in journalled:
        add_rows(rows.of(journal))
    return {quantity: grid.result() for quantity, grid in grids.items()}


@dataclass(frozen=True, slots=True)
class _Part:
    """The n buckets of one quantity that were read from one file.

    Attributes
    ----------
    names : tuple of str
        Names of the layers.
    layer : int32 (n,)
        The layer of each bucket, as an index into ``names``.
    step : int64 (n,)
        The first step of each bucket.
    buckets : Buckets
        The aggregates of each bucket. In a segment or a journal, each row is a bucket of one value.
    """

    names: tuple[str, ...]
    layer: NDArray[np.int32]
    step: NDArray[np.int64]
    buckets: Buckets

    @classmethod
    def of(cls, rows: pa.Table, buckets: Buckets) -> _Part:
        layer, names = codes(rows["layer"])
        return cls(tuple(names), layer, numbers(rows["step"]), buckets)

    @property
    def nbytes(self) -> int:
        names = sum(map(len, self.names))
        return names + self.layer.nbytes + self.step.nbytes + self.buckets.nbytes

    def at(self, where: NDArray[np.bool_]) -> _Part:
        """Return the buckets for which a mask, bool (n,), is True."""
        return _Part(self.names, self.layer[where], self.step[where], self.buckets.at(where))


def _read_piece(
    files: RunFiles, piece: Piece, entry: Entry, quantity: str, rows: RowFilter, *, extremes: bool
) -> _Part | None:
    """Read one quantity from an overview file; None if no step of the file passes ``rows``."""
    folder = f"{OVERVIEW}/{piece.level}"
    span = files.span_of(folder, entry)
    if span is None or not rows.may_be_between(*span):
        return None

    def read() -> _Part:
        columns = ["layer", "step", "rows", "finite", "mean", *(("min", "max") if extremes else ())]
        # The rows are not filtered by layer: all layers are decoded anyway.
        whole = RowFilter(texts={"quantity": (quantity,)})
        part = files.read_file(folder, entry, SCHEMA, columns, whole)
        part = no_rows(SCHEMA) if part is None else part
        return _Part.of(part, buckets_in(part))

    return files.cached(entry, (folder, quantity, extremes), read)


def _choose_buckets(
    levels: Collection[int], span: tuple[int, int], points: int
) -> tuple[int, int, int]:
    """Return the level to read, the first step of the first bucket, and the width of a bucket."""

    def units(level: int) -> int:
        return ((span[1] - 1) >> 2 * level) - ((span[0] - 1) >> 2 * level) + 1

    few = [level for level in levels if units(level) <= _FINER * points]
    level = min(few, default=max(levels, default=0))
    begin = ((span[0] - 1) >> 2 * level << 2 * level) + 1
    return level, begin, -(-units(level) // points) << 2 * level


def _covering_files(
    pieces: Collection[Piece], sealed: Collection[int], level: int
) -> Iterator[Piece | int]:
    """Yield files that together cover every sealed row exactly once.

    Yields
    ------
    Piece
        An overview file of the given level or of a finer one.
    int
        The number of a sealed segment that none of these overview files covers.
    """
    best: dict[int, Piece] = {}
    fine = [piece for piece in pieces if piece.level <= level]
    for piece in sorted(fine, key=lambda piece: (piece.level, piece.last)):
        best[piece.first] = piece  # replaces a finer or smaller file
    numbers = sorted(sealed)
    end = numbers[-1] + 1 if numbers else 0
    covered = 0  # segments with lower numbers are covered
    for first in sorted({*best, end}):
        if covered <= first <= end:
            yield from numbers[bisect_left(numbers, covered) : bisect_left(numbers, first)]
            if first < end:
                yield best[first]
                covered = best[first].last + 1


class _Grid:
    """Merges the buckets that are read from several files into one `Downsampled`."""

    def __init__(
        self, first: int, buckets: int, width: int, layers: Sequence[str], *, extremes: bool
    ) -> None:
        self.first, self.last = first, first + buckets * width - 1
        self._width = width
        self._shape = (buckets, len(layers))
        self._places = {name: place for place, name in enumerate(layers)}
        self._names: tuple[str, ...] = ()
        self._columns_of_names = np.zeros(0, np.int64)
        size = buckets * len(layers)
        self._rows, self._finite, self._total = np.zeros((3, size))
        self._low = np.full(size, np.inf) if extremes else None
        self._high = np.full(size, -np.inf) if extremes else None

    def add(self, part: _Part | None) -> None:
        """Merge the buckets of a part into the grid; skip layers and steps outside of the grid."""
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
        begin, end = int(bucket.min()), int(bucket.max()) + 1  # the buckets of the grid that change
        at = (bucket - begin) * self._shape[1] + columns[part.layer]
        there = slice(begin * self._shape[1], end * self._shape[1])
        size = there.stop - there.start
        self._rows[there] += np.bincount(at, part.buckets.rows, size)
        self._finite[there] += np.bincount(at, part.buckets.finite, size)
        self._total[there] += np.bincount(at, part.buckets.total, size)
        if self._low is not None and self._high is not None:
            np.minimum.at(self._low[there], at, part.buckets.low)
            np.maximum.at(self._high[there], at, part.buckets.high)

    def _columns(self, names: tuple[str, ...]) -> NDArray[np.int64]:
        """Return each layer's column in the grid, int64 (n,); −1 for layers outside of the grid."""
        if names != self._names:  # usually they are those of the previous part
            self._names = names
            self._columns_of_names = np.array(
                [self._places.get(name, -1) for name in names], np.int64
            )
        return self._columns_of_names

    def result(self) -> Downsampled:
        """Return the merged buckets of all parts that were added."""
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
