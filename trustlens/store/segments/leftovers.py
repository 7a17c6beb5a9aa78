"""Sealing journals that remained when a process died or the disk was full."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trustlens.store.layout import journal_path, sealed_path
from trustlens.store.segments.contents import read_whole
from trustlens.store.segments.files import journal_numbers, sealed_numbers
from trustlens.store.segments.sealed import write_sealed


@dataclass(frozen=True, slots=True)
class Leftover:
    """The rows, and the bytes of incomplete batches, found in the journals of a table.

    Attributes
    ----------
    table : str
        The table.
    rows : int
        Number of rows, which are sealed now.
    torn : int
        Bytes of incomplete batches.
    """

    table: str
    rows: int
    torn: int

    @property
    def is_something(self) -> bool:
        """Whether there are rows, or bytes of incomplete batches."""
        return self.rows > 0 or self.torn > 0


def seal_leftovers(directory: Path, table: str, *, before: int | None = None) -> Leftover:
    """Seal the journals of one table. The caller holds the run's lock.

    Parameters
    ----------
    directory : Path
        The run.
    table : str
        One of ``trustlens.schema.TABLES``.
    before : int, optional
        Seal only journals with lower numbers.

    Raises
    ------
    OSError
        If the disk is full, or a segment cannot be written. Its journal stays.
    """
    sealed = sealed_numbers(directory, table)
    found = torn = 0
    for number in sorted(journal_numbers(directory, table)):
        if before is not None and number >= before:
            break
        journal = journal_path(directory, table, number)
        if number not in sealed:
            rows, lost = read_whole(journal, table)
            if rows.num_rows:
                write_sealed(sealed_path(directory, table, number), table, rows)
            found, torn = found + rows.num_rows, torn + lost
        with suppress(OSError):  # a reader may have it open (Windows)
            journal.unlink()
    return Leftover(table, found, torn)
