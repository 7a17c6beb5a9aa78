"""Reading a run's tables while it may still be written: every row once, no incomplete rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trustlens.errors import RunError
from trustlens.store.address import Address, locate
from trustlens.store.arrow import no_rows, numbers
from trustlens.store.layout import JOURNAL, LOCK_FILE, OVERVIEW, RUN_FILE, SCHEMAS, journal_path
from trustlens.store.location import Entry, Location
from trustlens.store.lru_cache import CACHE, Item
from trustlens.store.overview.format import Piece, is_level, piece_of
from trustlens.store.row_filter import ALL, RowFilter
from trustlens.store.segments.contents import read_journal, readable
from trustlens.store.segments.files import journal_numbers, sealed_in
from trustlens.store.segments.row_groups import (
    NO_STEPS,
    Group,
    Sealed,
    read_groups,
    read_sealed_files,
)
from trustlens.store.validation import check_footer, check_rows

_ATTEMPTS: Final = 20

_SETTLED: Final = 1_000_000_000
"""Age in nanoseconds from which an unchanged folder is not listed again. File systems tell the time
in ticks, and a second change within the same tick would not be seen."""

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Footer:
    """The footer of a Parquet file of a run.

    Attributes
    ----------
    metadata : pyarrow.parquet.FileMetaData
        As Parquet has it.
    groups : list of Group or None
        The index of its row groups; None if it has none.
    sealed : list of Sealed
        The segments that a file of the overview was made from.
    """

    metadata: pq.FileMetaData
    groups: list[Group] | None
    sealed: list[Sealed]

    @property
    def nbytes(self) -> int:
        """About the bytes that it takes in memory."""
        described = len(self.groups or ()) + len(self.sealed)
        return 4 * self.metadata.serialized_size + 300 * described


class RunFiles:
    """Reads the files of a run. Parts of files that do not change are cached.

    Parameters
    ----------
    directory : str, path or Location
        The run.
    """

    def __init__(self, directory: Address) -> None:
        self.directory = locate(directory)
        self._listed: dict[str, tuple[int, list[Entry]]] = {}
        self._numbered: dict[str, tuple[list[Entry], dict[int, Entry]]] = {}
        self._pieces: tuple[list[list[Entry]], dict[Piece, Entry]] = ([], {})
        self._identity = self.directory.identity
        self._spans: dict[tuple[str, Entry], tuple[int, int]] = {}
        self._spans_of: dict[str, tuple[Mapping[int, Entry], dict[int, tuple[int, int]]]] = {}

    def read(
        self, table: str, columns: Sequence[str] | None = None, rows: RowFilter = ALL
    ) -> pa.Table:
        """Return rows of a table, sealed and journalled, in no particular order.

        Parameters
        ----------
        table : str
            One of ``trustlens.schema.TABLES``.
        columns : sequence of str, optional
            The columns wanted; all if not given.
        rows : RowFilter
            The rows wanted.

        Raises
        ------
        RunError
            A sealed file is damaged; the message names it.
        """
        wanted = list(columns) if columns is not None else SCHEMAS[table].names
        parts = self.consistently(lambda: list(self._parts(table, wanted, rows)))
        schema = pa.schema([SCHEMAS[table].field(name) for name in wanted])
        return pa.concat_tables([no_rows(schema), *parts]).unify_dictionaries()

    def consistently(self, look: Callable[[], Found]) -> Found:
        """Look at the files; again, if meanwhile one was replaced by another that has its rows.

        Raises
        ------
        RunError
            That happened at each of many attempts.
        """
        for _ in range(_ATTEMPTS):
            try:
                return look()
            except FileNotFoundError:
                self._listed.clear()
        raise RunError(f"'{self.directory}' changes faster than it can be read; try again")

    def contents(self, table: str) -> tuple[dict[int, Entry], list[pa.Table]]:
        """Return a table's sealed files by their numbers, and its rows that are in no such file.

        Those are read before the files are listed. Of a journal that is sealed meanwhile only the
        file counts, which has its number; one that begins meanwhile has newer rows, which are not
        looked for. So only a rewind makes a reader look again: it replaces sealed files.
        """
        journals: dict[int, pa.Table] = {}
        for number in sorted(journal_numbers(self.directory, table)):
            with suppress(FileNotFoundError):  # it has been sealed, or had no rows
                journals[number] = read_journal(journal_path(self.directory, table, number), table)
        sealed = self.sealed(table)
        return sealed, [rows for number, rows in journals.items() if number not in sealed]

    def listed(self, folder: str) -> list[Entry]:
        """Return what lies in a folder of the run; listed anew only if it has changed since."""
        now = (self.directory / folder).names_changed()
        known = self._listed.get(folder)
        if known is not None and known[0] == now:
            return known[1]
        found = (self.directory / folder).entries()
        if now is not None and now < time.time_ns() - _SETTLED:
            self._listed[folder] = (now, found)
        else:
            self._listed.pop(folder, None)
        return found

    def sealed(self, table: str) -> dict[int, Entry]:
        """Return a table's sealed files by their numbers."""
        found = self.listed(table)
        known = self._numbered.get(table)
        if known is None or known[0] is not found:
            named = {entry.name: entry for entry in found}
            sealed = {number: named[name] for number, name in sealed_in(named).items()}
            known = self._numbered[table] = (found, sealed)
        return known[1]

    def pieces(self) -> dict[Piece, Entry]:
        """Return the files of the overview."""
        levels = [entry.name for entry in self.listed(OVERVIEW) if is_level(entry.name)]
        found = [self.listed(f"{OVERVIEW}/{level}") for level in levels]
        known = self._pieces
        if known[0] != found:
            pieces = {
                piece: entry
                for level, listed in zip(levels, found, strict=True)
                for entry in listed
                if (piece := piece_of(int(level), entry.name)) is not None
            }
            known = self._pieces = (found, pieces)
        return known[1]

    def spans(
        self, table: str, sealed: Mapping[int, Entry] | None = None
    ) -> dict[int, tuple[int, int]]:
        """Return the first and the last step of those sealed files that have rows, by number."""
        sealed = self.sealed(table) if sealed is None else sealed
        known = self._spans_of.get(table)
        if known is None or known[0] is not sealed:
            unknown = [number for number in sealed if (table, sealed[number]) not in self._spans]
            # One is opened as soon as the overview is.
            told = self._told() if table == "layers" and len(unknown) > 1 else {}
            for number in unknown:
                entry = sealed[number]
                if entry.changed and number in told and told[number].size == entry.size:
                    self._spans[table, entry] = (told[number].first, told[number].last)
            spans = {number: self.span_of(table, entry) for number, entry in sealed.items()}
            there = {number: span for number, span in spans.items() if span is not None}
            known = self._spans_of[table] = (sealed, there)
        return known[1]

    def _told(self) -> dict[int, Sealed]:
        """Return what the overview tells of the sealed files that it is made of, by number."""
        told: dict[int, Sealed] = {}
        pieces = self.pieces()
        for piece in sorted(pieces, key=lambda piece: -piece.count):  # so few are opened
            if not (piece.first in told and piece.last in told):
                with suppress(RunError):  # it is damaged: then the files tell of themselves
                    footer = self.footer(f"{OVERVIEW}/{piece.level}", pieces[piece])
                    told |= {sealed.number: sealed for sealed in footer.sealed}
        return told

    def span(self, table: str) -> tuple[int, int] | None:
        """Return the first and the last step of a table; None if it has no rows."""
        return self.consistently(lambda: self._span(table))

    def footer(self, folder: str, entry: Entry) -> Footer:
        """Return what a Parquet file in a folder of the run says of itself."""
        path = self.directory / folder / entry.name
        if not entry.changed:
            return _footer(path, entry)
        return CACHE.get((self._identity, folder, entry), lambda: _footer(path, entry))

    def read_file(
        self,
        folder: str,
        entry: Entry,
        schema: pa.Schema,
        columns: Sequence[str],
        rows: RowFilter,
    ) -> pa.Table | None:
        """Return rows of one Parquet file in a folder of the run; None if it has no such rows.

        Raises
        ------
        RunError
            It is damaged.
        FileNotFoundError
            It was replaced since it was listed.
        """
        if rows.needs:
            span = self.span_of(folder, entry)
            if span is None or not rows.may_be_between(*span):
                return None
        footer = self.footer(folder, entry)
        places = range(footer.metadata.num_row_groups)
        if footer.groups is not None:
            places = [i for i, group in enumerate(footer.groups) if group.may_have(rows)]
            for name in rows.texts:
                if all(footer.groups[place].all_have(name) for place in places):
                    rows = rows.without(name)  # the text that is asked for
        if not places:
            return None
        path = self.directory / folder / entry.name
        typed = pa.schema([schema.field(name) for name in dict.fromkeys((*columns, *rows.needs))])

        def read() -> pa.Table:
            with path.open(entry) as file:
                # On an object store a few large requests are faster.
                buffer = path.is_remote
                opened = pq.ParquetFile(file, metadata=footer.metadata, pre_buffer=buffer)
                found = opened.read_row_groups(places, typed.names, use_threads=False)
                return check_rows(found, typed)

        return rows.of(readable(path, read)).select(list(columns))

    def cached(self, entry: Entry, key: Hashable, make: Callable[[], Item]) -> Item:
        """Return what is cached of a file under a key, or make it."""
        if not entry.changed:
            return make()
        return CACHE.get((self._identity, entry, key), make)

    def span_of(self, folder: str, entry: Entry) -> tuple[int, int] | None:
        """Return the first and the last step of a Parquet file; None if it has no rows."""
        known = self._spans.get((folder, entry))
        if known is None:
            groups = self.footer(folder, entry).groups
            if groups is not None:
                told = [(group.first, group.last) for group in groups]
            else:
                step = pa.schema([pa.field("step", pa.int64())])
                told = [_span_in(self.read_file(folder, entry, step, ["step"], ALL))]
            known = _joined(told)
            if entry.changed:
                self._spans[folder, entry] = known
        return known if known[0] <= known[1] else None

    def _span(self, table: str) -> tuple[int, int] | None:
        sealed, journalled = self.contents(table)
        first, last = _joined([*self.spans(table, sealed).values(), *map(_span_in, journalled)])
        return (first, last) if first <= last else None

    def _parts(self, table: str, columns: list[str], rows: RowFilter) -> Iterator[pa.Table]:
        sealed, journalled = self.contents(table)
        yield from (rows.of(part).select(columns) for part in journalled)
        wanted = list(sealed)
        if rows.needs:
            spans = self.spans(table, sealed)
            wanted = [number for number, span in spans.items() if rows.may_be_between(*span)]
        schema = SCHEMAS[table]
        parts = (self.read_file(table, sealed[number], schema, columns, rows) for number in wanted)
        yield from (part for part in parts if part is not None)


def read_table(
    directory: Address, table: str, columns: Sequence[str] | None = None, rows: RowFilter = ALL
) -> pa.Table:
    """Return rows of a table, as :meth:`RunFiles.read` does, of a run that is read once."""
    return RunFiles(directory).read(table, columns, rows)


def fingerprint(directory: Address) -> str:
    """Return a text that changes whenever what a reader would see has changed."""
    return ";".join(f"{e.name}:{e.size}:{e.changed}" for e in _written(locate(directory)))


def last_written(address: Address) -> float:
    """Return the time of the last write to the run, in seconds since the epoch; 0 if unknown.

    Or of the last sign of life of who writes it.
    """
    directory = locate(address)
    sign = [entry for entry in directory.entries() if entry.name == LOCK_FILE]
    return max((entry.changed for entry in (*sign, *_written(directory))), default=0) / 1e9


def _written(directory: Location) -> list[Entry]:
    found = [entry for entry in directory.entries() if entry.name == RUN_FILE]
    for folder in (JOURNAL, *SCHEMAS):
        listed = sorted((directory / folder).entries(), key=lambda entry: entry.name)
        found += [entry for entry in listed if entry.is_plain and not entry.name.startswith(".")]
    return found


def _footer(path: Location, entry: Entry) -> Footer:
    def read() -> Footer:
        with path.open(entry) as file:
            metadata = pq.read_metadata(file)
        check_footer(metadata)
        return Footer(metadata, read_groups(metadata), read_sealed_files(metadata))

    return readable(path, read)


def _span_in(rows: pa.Table | None) -> tuple[int, int]:
    """Return the first and the last step of some rows; 1 and 0 if there are none."""
    step = np.zeros(0, np.int64) if rows is None else numbers(rows["step"])
    return (int(step.min()), int(step.max())) if len(step) else NO_STEPS


def _joined(spans: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the first and the last step of all; 1 and 0 if there are none."""
    steps = [step for span in spans if span[0] <= span[1] for step in span]
    return (min(steps), max(steps)) if steps else NO_STEPS
