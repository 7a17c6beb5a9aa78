"""Sealing journals that were not sealed because a process died or the disk was full."""

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
    """What :func:`seal_leftovers` found in the journals of one table.

    Attributes
    ----------
    table : str
        Name of the table.
    rows : int
        Number of rows found; they are sealed now.
    torn : int
        Number of bytes of incomplete batches, which are lost.
    """

    table: str
    rows: int
    torn: int

    @property
    def is_something(self) -> bool:
        """Whether any rows or incomplete batches were found."""
        return self.rows > 0 or self.torn > 0


def seal_leftovers(directory: Path, table: str, *, before: int | None = None) -> Leftover:
    """Seal the journals of one table, and remove them. The caller holds the run's lock.

    Parameters
    ----------
    directory : Path
        The directory of the run.
    table : str
        One of ``trustlens.schema.TABLES``.
    before : int, optional
        Seal only journals with lower numbers than this; by default all.

    Returns
    -------
    Leftover
        What was found in the journals.

    Raises
    ------
    OSError
        If the disk is full, or a segment cannot be written. The segment's journal is not removed.
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
        with suppress(OSError):  # on Windows, not while a reader has the journal open
            journal.unlink()
    return Leftover(table, found, torn)
