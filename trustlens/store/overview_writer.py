"""Making what is missing of a run's overview: after each sealed file, by close or by repair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
import pyarrow as pa

from trustlens.store.columns import numbers
from trustlens.store.index import Sealed
from trustlens.store.layout import sealed_path
from trustlens.store.overview import (
    Piece,
    merged,
    of_rows,
    pieces,
    read_pieces,
    sealed_of,
    write_piece,
)
from trustlens.store.reader import journal_numbers, read_sealed, sealed_numbers

_JOINED: Final = 16  # of a level's smallest files become one

_AT_HAND: Final = 24
"""Files whose rows are kept in memory, of 2 MB each: those of the finest level until they are
joined, and of coarser ones those that the next is made of."""


class OverviewWriter:
    """Makes a run's overview; who does has the run's lock.

    Parameters
    ----------
    directory : Path
        The run.
    finest : int
        The exponent of the finest buckets, unless the run has an overview already.
    """

    def __init__(self, directory: Path, finest: int) -> None:
        self._directory = directory
        self._finest = finest
        self._there: list[Piece] = []
        # What coarser and larger files are made of; by quantity.
        self._at_hand: dict[Piece, list[pa.Table]] = {}

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
            The rows of sealed files that are at hand, by number.

        Raises
        ------
        OSError
            There is no room for it, or it cannot be written.
        RunError
            A file cannot be read.
        """
        self._there = pieces(self._directory)
        finest = min((piece.level for piece in self._there), default=self._finest)
        sealed = sealed_numbers(self._directory, "layers")
        unsealed = journal_numbers(self._directory, "layers") - sealed
        whole = min(unsealed, default=max(sealed, default=-1) + 1)  # all before it are sealed
        missing = sorted(n for n in sealed - self._covered(finest) if n < whole)
        for number in missing[:most]:
            self._make_finest(number, finest, sealed_now.get(number))
        coarser = [finest + n for n in range(1, 32) if 4**n <= whole]
        for level in coarser:
            size, covered = 4 ** (level - finest), self._covered(level)
            for first in range(self._covered_to(level), whole - size + 1, size):
                if first not in covered:
                    self._make(Piece(level, first, first + size - 1), level - 1)
        for level in (finest, *coarser):
            self._join(level, _JOINED * 4 ** (level - finest))
        ends = {level: self._covered_to(level) + 4 ** (level - finest) for level in coarser}
        return len(missing[:most]) == len(missing) and all(end > whole for end in ends.values())

    def _covered(self, level: int) -> set[int]:
        of_level = [piece for piece in self._there if piece.level == level]
        return {number for piece in of_level for number in range(piece.first, piece.last + 1)}

    def _covered_to(self, level: int) -> int:
        """Return the number of the first sealed file that is not in a level."""
        end = 0
        for piece in sorted(piece for piece in self._there if piece.level == level):
            if piece.first > end:
                break
            end = max(end, piece.last + 1)
        return end

    def _join(self, level: int, size: int) -> None:
        """Have the small files of a level be one, where there are all that make one so large."""
        for place in {piece.first // size for piece in self._there if piece.level == level}:
            piece = Piece(level, place * size, (place + 1) * size - 1)
            parts = self._within(piece, level)
            if parts != [piece] and self._make(piece, level):
                for part in parts:
                    self._there.remove(part)
                    self._at_hand.pop(part, None)
                    with suppress(FileNotFoundError):
                        part.path(self._directory).unlink()

    def _within(self, piece: Piece, level: int) -> list[Piece]:
        return sorted(
            p
            for p in self._there
            if p.level == level and piece.first <= p.first and p.last <= piece.last
        )

    def _make(self, piece: Piece, level: int) -> bool:
        """Make a file of those of a level; return whether those cover it, and it was made."""
        parts = self._within(piece, level)
        if not parts or sum(part.count for part in parts) < piece.count:
            return False
        at_hand = [self._at_hand[part] for part in parts if part in self._at_hand]
        whole = len(at_hand) == len(parts)
        found = (
            map(pa.concat_tables, zip(*at_hand, strict=True))
            if whole
            else read_pieces(self._directory, parts)
        )
        rows = (merged(each, piece.level) for each in found)
        self._write(piece, rows, sealed_of(self._directory, parts), is_joined=piece.level == level)
        return True

    def _make_finest(self, number: int, level: int, rows: pa.Table | None) -> None:
        path = sealed_path(self._directory, "layers", number)
        whole = read_sealed(path, "layers") if rows is None else rows
        step = numbers(whole["step"]) if whole.num_rows else np.array([1, 0])
        sealed = Sealed(number, path.stat().st_size, int(step.min()), int(step.max()))
        piece = Piece(level, number, number)
        self._write(piece, of_rows(whole, level), [sealed], is_joined=False)

    def _write(
        self, piece: Piece, rows: Iterable[pa.Table], sealed: list[Sealed], *, is_joined: bool
    ) -> None:
        if not is_joined:
            rows = self._at_hand[piece] = list(rows)
            if len(self._at_hand) > _AT_HAND:
                del self._at_hand[next(iter(self._at_hand))]
        write_piece(self._directory, piece, rows, sealed, is_final=is_joined)
        self._there.append(piece)
