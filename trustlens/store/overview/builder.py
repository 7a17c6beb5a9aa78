"""Building a run's overview from its sealed segments: after each seal, at close and at repair."""

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

_JOIN_COUNT: Final = 16  # so many of a level's smallest files are joined into one

_CACHE_BYTES: Final = 48 << 20
"""Maximum bytes of cached rows: those of small files, which will be joined or downsampled further.
Rows that are not cached are read again."""


class OverviewBuilder:
    """Builds the overview of a run.

    The caller holds the run's lock, and creates another builder after a rollback.

    Parameters
    ----------
    directory : Path
        The run.
    finest : int
        The level (exponent) of the finest buckets, unless the run has a finer level already.
    """

    def __init__(self, directory: Path, finest: int) -> None:
        self._directory = directory
        self._finest = finest
        self._existing: set[Piece] = set()
        self._missing: list[int] = []  # segments that are not in the overview
        self._next: int | None = None  # the next segment; None: scan the folders
        self._cached: dict[Piece, tuple[int, list[pa.Table]]] = {}  # bytes, rows by quantity

    def complete(
        self,
        *,
        limit: int | None = None,
        just_sealed: Mapping[int, pa.Table] = MappingProxyType({}),
    ) -> bool:
        """Build the missing files; return whether the overview is complete now.

        Parameters
        ----------
        limit : int, optional
            Maximum number of segments to add; all by default.
        just_sealed : mapping of int to pyarrow.Table
            The rows of segments that were just sealed, by number. If they include the next one,
            the folders are not scanned: then the cost does not grow with the run.

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
            self._next = None  # scan again the next time
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
        """Find the existing and the missing files; return the numbers of all segments."""
        sealed = sealed_numbers(self._directory, "layers")
        unsealed = journal_numbers(self._directory, "layers") - sealed
        existing = pieces(self._directory)
        if self._next is None:
            existing = [piece for piece in existing if self._is_current(piece, sealed)]
        self._existing = set(existing)
        self._finest = min([self._finest, *(piece.level for piece in existing)])
        self._next = min(
            unsealed, default=max(sealed, default=-1) + 1
        )  # all lower numbers are sealed
        finest = [piece for piece in existing if piece.level == self._finest]
        covered = {number for piece in finest for number in range(piece.first, piece.last + 1)}
        self._missing = sorted(number for number in sealed - covered if number < self._next)
        return sealed

    def _is_current(self, piece: Piece, sealed: set[int]) -> bool:
        """Return whether the segments that a piece was built from are unchanged; if not, remove it.

        They may differ if a copy of the run, file by file, was interrupted.
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
        """Return the levels that may have a file with any of these segments."""
        count = max(sealed, default=0) + 1
        return range(self._finest, self._finest + (count.bit_length() + 1) // 2)

    def _size(self, level: int) -> int:
        """Return the number of segments in the smallest files of a level."""
        return 4 ** (level - self._finest)

    def _blocks(self, sealed: Collection[int]) -> Iterator[Piece]:
        """Yield the smallest files of the coarser levels that cover these segments."""
        for level in self._levels(sealed)[1:]:
            yield from _aligned(sealed, level, self._size(level))

    def _exists(self, block: Piece) -> bool:
        (joined,) = _aligned([block.first], block.level, _JOIN_COUNT * self._size(block.level))
        return block in self._existing or joined in self._existing

    def _join(self, block: Piece) -> None:
        """Join the smallest files of a level into ``block``, if all its parts exist."""
        # If the block exists already, a process died before it removed the parts.
        if block in self._existing or self._build(block, block.level):
            self._remove(self._parts_of(block, block.level))

    def _parts_of(self, block: Piece, level: int) -> list[Piece]:
        size = self._size(level)
        return list(_aligned(range(block.first, block.last + 1, size), level, size))

    def _build(self, block: Piece, level: int) -> bool:
        """Build a file from the smallest files of a level; return whether it was."""
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
        except RunError:  # a part is damaged: the next scan builds all parts again
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
