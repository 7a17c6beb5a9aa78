"""Building the overview of a run from the run's sealed segments."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final

import pyarrow as pa

from trustlens.errors import RunError
from trustlens.store.arrow import numbers
from trustlens.store.layout import sealed_path
from trustlens.store.overview.format import (
    Piece,
    downsample,
    merge_buckets,
    pieces,
    read_pieces,
    read_sources,
    write_piece,
)
from trustlens.store.segments.contents import read_sealed
from trustlens.store.segments.files import journal_numbers, sealed_numbers
from trustlens.store.segments.row_groups import NO_STEPS, Sealed

_JOIN_COUNT: Final = 16  # number of adjacent small files of a level that are joined into one

_CACHE_BYTES: Final = 48 << 20
"""Maximum size of the cached rows in bytes. Rows of small files are cached, to build coarser or
joined files from them. Rows that are not in the cache are read from the files."""


class OverviewBuilder:
    """Builds the overview files of a run, for its writer and for a repair.

    :meth:`complete` is called after a segment was sealed, at the end of the recording and at a
    repair. The caller holds the run's lock, and creates another builder after a rollback.

    Parameters
    ----------
    directory : Path
        The directory of the run.
    finest : int
        The finest level k, with buckets of 4^k steps. A finer level is used instead if the run has
        one already.
    """

    def __init__(self, directory: Path, finest: int) -> None:
        self._directory = directory
        self._finest = finest
        self._existing: set[Piece] = set()
        self._missing: list[int] = []  # numbers of segments that are not in the overview
        self._next: int | None = None  # the next segment's number; None if a scan is due
        self._cached: dict[Piece, tuple[int, list[pa.Table]]] = {}  # bytes, rows by quantity

    def complete(
        self,
        *,
        limit: int | None = None,
        just_sealed: Mapping[int, pa.Table] = MappingProxyType({}),
    ) -> bool:
        """Build the missing overview files.

        Parameters
        ----------
        limit : int, optional
            Maximum number of segments to add to the overview in this call; all by default.
        just_sealed : mapping of int to pyarrow.Table
            The rows of segments that were just sealed, by the number of the segment. If the next
            segment to add is among them, the run's folders are not scanned, so that the cost of a
            call does not grow with the run.

        Returns
        -------
        bool
            Whether the overview is complete now.

        Raises
        ------
        OSError
            If the disk is full, or a file cannot be written.
        RunError
            If a segment cannot be read.
        """
        try:
            is_complete = self._complete(limit, just_sealed)
            if self._next is None:  # damaged files were found and removed
                is_complete = self._complete(limit, just_sealed)
        except BaseException:
            self._next = None  # scan the folders in the next call
            raise
        return is_complete and self._next is not None

    def _complete(self, limit: int | None, just_sealed: Mapping[int, pa.Table]) -> bool:
        scanned = set[int]()
        if self._next is None or self._next not in just_sealed:
            scanned = self._scan()
        else:
            self._missing += sorted(just_sealed)
            self._next = self._missing[-1] + 1
        batch = self._missing[:limit]
        for number in batch:
            self._build_finest(number, just_sealed.get(number))
            self._missing.remove(number)
        touched = scanned or batch
        for block in self._blocks(touched):
            if not self._exists(block):
                self._build(block, block.level - 1)
        for level in self._levels(touched):
            for block in _aligned(touched, level, _JOIN_COUNT * self._size(level)):
                self._join(block)
        lacking = (block for block in self._blocks(scanned) if not self._exists(block))
        sealed = (scanned.issuperset(range(block.first, block.last + 1)) for block in lacking)
        return not self._missing and not any(sealed)

    def _scan(self) -> set[int]:
        """Find overview files and the segments that are in none; return all segments' numbers."""
        sealed = sealed_numbers(self._directory, "layers")
        unsealed = journal_numbers(self._directory, "layers") - sealed
        existing = pieces(self._directory)
        if self._next is None:
            existing = [piece for piece in existing if self._is_current(piece, sealed)]
        self._existing = set(existing)
        self._finest = min([self._finest, *(piece.level for piece in existing)])
        # No segment with a number below this one will be sealed later.
        self._next = min(unsealed, default=max(sealed, default=-1) + 1)
        finest = [piece for piece in existing if piece.level == self._finest]
        covered = {number for piece in finest for number in range(piece.first, piece.last + 1)}
        self._missing = sorted(number for number in sealed - covered if number < self._next)
        return sealed

    def _is_current(self, piece: Piece, sealed: set[int]) -> bool:
        """Return whether an overview file still matches its segments; otherwise remove the file.

        It does not match if a copy of the run was interrupted: segments are then missing, or are
        from another state of the run.
        """
        with suppress(RunError, OSError):
            if sealed.issuperset(range(piece.first, piece.last + 1)) and all(
                sealed_path(self._directory, "layers", each.number).stat().st_size == each.size
                for each in read_sources(self._directory, [piece])
            ):
                return True
        self._remove([piece])
        return False

    def _levels(self, sealed: Collection[int]) -> range:
        """Return the levels at which a file may cover some of these segments."""
        count = max(sealed, default=0) + 1
        return range(self._finest, self._finest + (count.bit_length() + 1) // 2)

    def _size(self, level: int) -> int:
        """Return how many segments a file of a level covers before it is joined with others."""
        return 4 ** (level - self._finest)

    def _blocks(self, sealed: Collection[int]) -> Iterator[Piece]:
        """Yield the files that should cover these segments at each level except the finest.

        They are named as before joining. A file may not exist yet, or may be joined already.
        """
        for level in self._levels(sealed)[1:]:
            yield from _aligned(sealed, level, self._size(level))

    def _exists(self, block: Piece) -> bool:
        (joined,) = _aligned([block.first], block.level, _JOIN_COUNT * self._size(block.level))
        return block in self._existing or joined in self._existing

    def _join(self, block: Piece) -> None:
        """Join the unjoined files that ``block`` consists of, if all of them exist."""
        # If ``block`` exists already, a process died after it built the file and before it removed
        # the parts.
        if block in self._existing or self._build(block, block.level):
            self._remove(self._parts_of(block, block.level))

    def _parts_of(self, block: Piece, level: int) -> list[Piece]:
        size = self._size(level)
        return list(_aligned(range(block.first, block.last + 1, size), level, size))

    def _build(self, block: Piece, level: int) -> bool:
        """Build ``block`` from the unjoined files of ``level``; return whether this succeeded."""
        parts = self._parts_of(block, level)
        if not self._existing.issuperset(parts):
            return False
        try:
            if all(part in self._cached for part in parts):
                cached = (self._cached[part][1] for part in parts)
                found = map(pa.concat_tables, zip(*cached, strict=True))
            else:
                found = read_pieces(self._directory, parts)
            rows = (merge_buckets(each, block.level) for each in found)
            self._write(block, rows, read_sources(self._directory, parts))
        except RunError:  # a part is damaged: scan again, and build all parts again
            self._remove(parts)
            self._next = None
            return False
        return True

    def _build_finest(self, number: int, rows: pa.Table | None) -> None:
        path = sealed_path(self._directory, "layers", number)
        table = read_sealed(path, "layers") if rows is None else rows
        step = numbers(table["step"])
        span = (int(step.min()), int(step.max())) if len(step) else NO_STEPS
        sealed = Sealed(number, path.stat().st_size, *span)
        self._write(Piece(self._finest, number, number), downsample(table, self._finest), [sealed])

    def _write(self, piece: Piece, rows: Iterable[pa.Table], sealed: list[Sealed]) -> None:
        is_joined = piece.count > self._size(piece.level)
        if not is_joined:
            rows = list(rows)
            self._cache(piece, rows)
        write_piece(self._directory, piece, rows, sealed, is_final=is_joined)
        self._existing.add(piece)

    def _cache(self, piece: Piece, rows: list[pa.Table]) -> None:
        self._cached[piece] = (sum(each.nbytes for each in rows), rows)
        while sum(size for size, _ in self._cached.values()) > _CACHE_BYTES:
            del self._cached[next(iter(self._cached))]

    def _remove(self, parts: Iterable[Piece]) -> None:
        for part in parts:
            self._existing.discard(part)
            self._cached.pop(part, None)
            part.path(self._directory).unlink(missing_ok=True)


def _aligned(sealed: Iterable[int], level: int, size: int) -> Iterator[Piece]:
    """Yield the files of a level that cover these segments; each file covers ``size`` segments."""
    for first in sorted({number // size * size for number in sealed}):
        yield Piece(level, first, first + size - 1)
