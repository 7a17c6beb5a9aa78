"""Making what is missing of a run's overview: after each sealed file, by close or by repair."""

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
    merged,
    of_rows,
    pieces,
    read_pieces,
    sealed_of,
    write_piece,
)
from trustlens.store.segments.contents import read_sealed
from trustlens.store.segments.files import journal_numbers, sealed_numbers
from trustlens.store.segments.row_groups import NO_STEPS, Sealed

_JOINED: Final = 16  # of a level's smallest files become one

_AT_HAND: Final = 48 << 20
"""Bytes of rows that are kept in memory: of files that will soon be joined, or make a coarser one.
What there is no room for is read again."""


class OverviewWriter:
    """Makes a run's overview; who does has the run's lock, and makes another one after a rewind.

    Parameters
    ----------
    directory : Path
        The run.
    finest : int
        The exponent of the finest buckets, unless the run has finer ones already.
    """

    def __init__(self, directory: Path, finest: int) -> None:
        self._directory = directory
        self._finest = finest
        self._there: set[Piece] = set()
        self._missing: list[int] = []  # sealed files of which nothing is made yet
        self._next: int | None = None  # the number of the sealed file that comes next; None: unseen
        self._at_hand: dict[Piece, tuple[int, list[pa.Table]]] = {}  # bytes; rows by quantity

    def complete(
        self,
        *,
        most: int | None = None,
        sealed_now: Mapping[int, pa.Table] = MappingProxyType({}),
    ) -> bool:
        """Make what is missing; return whether it is all there now.

        Parameters
        ----------
        most : int, optional
            How many sealed files to read for it at most; all that are not in it if not given.
        sealed_now : mapping of int to pyarrow.Table
            The rows of sealed files that are at hand, by number. If it is the one that comes next,
            nothing else is looked at: the cost does not grow with the run.

        Raises
        ------
        OSError
            There is no room for it, or it cannot be written.
        RunError
            A sealed file cannot be read.
        """
        try:
            whole = self._complete(most, sealed_now)
            if self._next is None:  # damaged ones were found, and taken away
                whole = self._complete(most, sealed_now)
        except BaseException:
            self._next = None  # what was not made is to be seen to be missing
            raise
        return whole and self._next is not None

    def _complete(self, most: int | None, sealed_now: Mapping[int, pa.Table]) -> bool:
        looked = set[int]()
        if self._next is None or self._next not in sealed_now:
            looked = self._look()
        else:
            self._missing += sorted(sealed_now)
            self._next = self._missing[-1] + 1
        now = self._missing[:most]
        for number in now:
            self._make_finest(number, sealed_now.get(number))
            self._missing.remove(number)
        touched = looked or now
        for block in self._blocks(touched):
            if not self._has(block):
                self._make(block, block.level - 1)
        for level in self._levels(touched):
            for block in _aligned(touched, level, _JOINED * self._size(level)):
                self._join(block)
        lacks = (block for block in self._blocks(looked) if not self._has(block))
        sealed = (looked.issuperset(range(block.first, block.last + 1)) for block in lacks)
        return not self._missing and not any(sealed)

    def _look(self) -> set[int]:
        """See what there is and what is missing; return the numbers of the sealed files."""
        sealed = sealed_numbers(self._directory, "layers")
        unsealed = journal_numbers(self._directory, "layers") - sealed
        there = pieces(self._directory)
        if self._next is None:
            there = [piece for piece in there if self._is_true(piece, sealed)]
        self._there = set(there)
        self._finest = min([self._finest, *(piece.level for piece in there)])
        self._next = min(unsealed, default=max(sealed, default=-1) + 1)  # all before it are sealed
        finest = [piece for piece in there if piece.level == self._finest]
        made = {number for piece in finest for number in range(piece.first, piece.last + 1)}
        self._missing = sorted(number for number in sealed - made if number < self._next)
        return sealed

    def _is_true(self, piece: Piece, sealed: set[int]) -> bool:
        """Tell whether the files that a piece was made of are still those; if not, remove it.

        They may be others: who copies a run, file by file, may have been interrupted.
        """
        with suppress(RunError, OSError):
            if sealed.issuperset(range(piece.first, piece.last + 1)) and all(
                sealed_path(self._directory, "layers", each.number).stat().st_size == each.size
                for each in sealed_of(self._directory, [piece])
            ):
                return True
        self._remove([piece])
        return False

    def _levels(self, sealed: Collection[int]) -> range:
        """Return the levels of which a file of these sealed files may be."""
        count = max(sealed, default=0) + 1
        return range(self._finest, self._finest + (count.bit_length() + 1) // 2)

    def _size(self, level: int) -> int:
        """Return of how many sealed files the smallest files of a level are made."""
        return 4 ** (level - self._finest)

    def _blocks(self, sealed: Collection[int]) -> Iterator[Piece]:
        """Yield the smallest files of the coarser levels in which these sealed files are to be."""
        for level in self._levels(sealed)[1:]:
            yield from _aligned(sealed, level, self._size(level))

    def _has(self, block: Piece) -> bool:
        (joined,) = _aligned([block.first], block.level, _JOINED * self._size(block.level))
        return block in self._there or joined in self._there

    def _join(self, block: Piece) -> None:
        """Have the small files of a level be one, where there are all that make one so large."""
        # If it is there already, the process died before it had taken its parts away.
        if block in self._there or self._make(block, block.level):
            self._remove(self._parts(block, block.level))

    def _parts(self, block: Piece, level: int) -> list[Piece]:
        size = self._size(level)
        return list(_aligned(range(block.first, block.last + 1, size), level, size))

    def _make(self, block: Piece, level: int) -> bool:
        """Make a file of the smallest ones of a level, if they are all there; return whether."""
        parts = self._parts(block, level)
        if not self._there.issuperset(parts):
            return False
        try:
            if all(part in self._at_hand for part in parts):
                at_hand = (self._at_hand[part][1] for part in parts)
                found = map(pa.concat_tables, zip(*at_hand, strict=True))
            else:
                found = read_pieces(self._directory, parts)
            rows = (merged(each, block.level) for each in found)
            self._write(block, rows, sealed_of(self._directory, parts))
        except RunError:  # one of them is damaged: they are made anew, once they are missed
            self._remove(parts)
            self._next = None
            return False
        return True

    def _make_finest(self, number: int, rows: pa.Table | None) -> None:
        path = sealed_path(self._directory, "layers", number)
        whole = read_sealed(path, "layers") if rows is None else rows
        step = numbers(whole["step"])
        span = (int(step.min()), int(step.max())) if len(step) else NO_STEPS
        sealed = Sealed(number, path.stat().st_size, *span)
        self._write(Piece(self._finest, number, number), of_rows(whole, self._finest), [sealed])

    def _write(self, piece: Piece, rows: Iterable[pa.Table], sealed: list[Sealed]) -> None:
        is_joined = piece.count > self._size(piece.level)
        if not is_joined:
            rows = list(rows)
            self._keep(piece, rows)
        write_piece(self._directory, piece, rows, sealed, is_final=is_joined)
        self._there.add(piece)

    def _keep(self, piece: Piece, rows: list[pa.Table]) -> None:
        self._at_hand[piece] = (sum(each.nbytes for each in rows), rows)
        while sum(size for size, _ in self._at_hand.values()) > _AT_HAND:
            del self._at_hand[next(iter(self._at_hand))]

    def _remove(self, parts: Iterable[Piece]) -> None:
        for part in parts:
            self._there.discard(part)
            self._at_hand.pop(part, None)
            part.path(self._directory).unlink(missing_ok=True)


def _aligned(sealed: Iterable[int], level: int, size: int) -> Iterator[Piece]:
    """Yield the files of a level, each of so many sealed files, in which these are."""
    for first in sorted({number // size * size for number in sealed}):
        yield Piece(level, first, first + size - 1)
