"""Making what is missing of a run's overview: after each sealed file, by close or by repair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final

import pyarrow as pa

from trustlens.store.layout import sealed_path
from trustlens.store.overview import Piece, merged, of_rows, pieces, read_pieces, write_piece
from trustlens.store.reader import journal_numbers, read_sealed, sealed_numbers

_JOINED: Final = 16  # of a level's smallest files become one

_AT_HAND: Final = 32  # files whose rows are kept in memory, of 2 MB each


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
        # What the next coarser level is made of; by quantity.
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
        missing = sorted(n for n in sealed if n < whole and not self._covers(finest, n))
        for number in missing[:most]:
            rows = sealed_now.get(number)
            if rows is None:
                rows = read_sealed(sealed_path(self._directory, "layers", number), "layers")
            self._write(Piece(finest, number, number), of_rows(rows, finest), keep=True)
        coarser = [finest + n for n in range(1, 32) if 4**n <= whole]
        for level in coarser:
            size = 4 ** (level - finest)
            for first in range(self._covered_to(level), whole - size + 1, size):
                if not self._covers(level, first):
                    self._make(Piece(level, first, first + size - 1), level - 1)
        for level in (finest, *coarser):
            self._join(level, _JOINED * 4 ** (level - finest))
        ends = {level: self._covered_to(level) + 4 ** (level - finest) for level in coarser}
        return len(missing[:most]) == len(missing) and all(end > whole for end in ends.values())

    def _covers(self, level: int, number: int) -> bool:
        return any(p.level == level and p.first <= number <= p.last for p in self._there)

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
        self._write(piece, (merged(rows, piece.level) for rows in found), keep=piece.level > level)
        for part in parts if piece.level > level else ():
            self._at_hand.pop(part, None)
        return True

    def _write(self, piece: Piece, by_quantity: Iterable[pa.Table], *, keep: bool) -> None:
        if keep:
            by_quantity = self._at_hand[piece] = list(by_quantity)
            if len(self._at_hand) > _AT_HAND:
                del self._at_hand[next(iter(self._at_hand))]
        write_piece(self._directory, piece, by_quantity)
        self._there.append(piece)
