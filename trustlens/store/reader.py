"""Reading the tables of a run, even while the run is being written.

A reader gets each row once, and never an incomplete row.
"""

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
"""Nanoseconds that must have passed since a folder's last change before its listing is cached. The
time stamps of file systems are coarse: two changes in quick succession may have the same one."""

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Footer:
    """The parsed footer of a Parquet file of a run: of a sealed segment or of an overview file.

    Attributes
    ----------
    metadata : pyarrow.parquet.FileMetaData
        The Parquet metadata.
    groups : list of Group or None
        The row-group index (see ``segments.row_groups``); None if the file has no valid index.
    sealed : list of Sealed
        For an overview file, the segments that it was made from; otherwise empty.
    """

    metadata: pq.FileMetaData
    groups: list[Group] | None
    sealed: list[Sealed]

    @property
    def nbytes(self) -> int:
        """Approximate size in memory, in bytes."""
        described = len(self.groups or ()) + len(self.sealed)
        return 4 * self.metadata.serialized_size + 300 * described


class RunFiles:
    """Reads the files of one run.

    Folder listings and step ranges are cached in the instance, parsed footers in the cache that all
    runs share. A file that has changed is read again.

    Parameters
    ----------
    directory : str, path or Location
        Where the run is.
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
        """Return rows of a table, in no particular order. Segments and journals are read.

        Parameters
        ----------
        table : str
            One of ``trustlens.schema.TABLES``.
        columns : sequence of str, optional
            The columns to read; all by default.
        rows : RowFilter
            Only rows that pass this filter are returned; by default all rows.

        Raises
        ------
        RunError
            If a segment is damaged; the message names its file.
        """
        wanted = list(columns) if columns is not None else SCHEMAS[table].names
        parts = self.consistently(lambda: list(self._parts(table, wanted, rows)))
        schema = pa.schema([SCHEMAS[table].field(name) for name in wanted])
        return pa.concat_tables([no_rows(schema), *parts]).unify_dictionaries()

    def consistently(self, look: Callable[[], Found]) -> Found:
        """Return ``look()``; call it again if it fails because the run's files changed meanwhile.

        Parameters
        ----------
        look : callable
            A function that reads files of the run. It raises FileNotFoundError if a file was
            removed or replaced after it was listed.

        Raises
        ------
        RunError
            If 20 attempts failed.
        """
        for _ in range(_ATTEMPTS):
            try:
                return look()
            except FileNotFoundError:
                self._listed.clear()
        raise RunError(f"'{self.directory}' changes faster than it can be read; try again")

    def contents(self, table: str) -> tuple[dict[int, Entry], list[pa.Table]]:
        """Return the entries of a table's sealed segments, and the rows that are not sealed.

        Journals are read before the segments are listed. If a journal is sealed in between, its
        rows are left out: the segment of the same number has them. A journal that is created in
        between is not read: its rows are newer than this call. So neither makes a reader start
        again; only a rollback does, because it replaces segments.

        Returns
        -------
        sealed : dict of int to Entry
            The file of each sealed segment, by the segment's number.
        rows : list of pyarrow.Table
            The rows of each journal that is not sealed.
        """
        journals: dict[int, pa.Table] = {}
        for number in sorted(journal_numbers(self.directory, table)):
            with suppress(FileNotFoundError):  # the journal was sealed or removed meanwhile
                journals[number] = read_journal(journal_path(self.directory, table, number), table)
        sealed = self.sealed(table)
        return sealed, [rows for number, rows in journals.items() if number not in sealed]

    def listed(self, folder: str) -> list[Entry]:
        """Return the entries of a folder of the run. An unchanged folder is not listed again."""
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
        """Return the file of each sealed segment of a table, by the segment's number."""
        found = self.listed(table)
        known = self._numbered.get(table)
        if known is None or known[0] is not found:
            named = {entry.name: entry for entry in found}
            sealed = {number: named[name] for number, name in sealed_in(named).items()}
            known = self._numbered[table] = (found, sealed)
        return known[1]

    def pieces(self) -> dict[Piece, Entry]:
        """Return the `Entry` of each overview file, by the `Piece` that describes the file."""
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
        """Return the first and last step of each sealed segment that has rows.

        Parameters
        ----------
        table : str
            One of ``trustlens.schema.TABLES``.
        sealed : mapping of int to Entry, optional
            The table's segments as :meth:`sealed` returned them; by default they are listed now.

        Returns
        -------
        dict of int to (int, int)
            The two steps, by the segment's number.
        """
        sealed = self.sealed(table) if sealed is None else sealed
        known = self._spans_of.get(table)
        if known is None or known[0] is not sealed:
            unknown = [number for number in sealed if (table, sealed[number]) not in self._spans]
            # If one segment is unknown, opening it is as fast as opening an overview file.
            listed_spans = (
                self._listed_in_overview() if table == "layers" and len(unknown) > 1 else {}
            )
            for number in unknown:
                entry = sealed[number]
                if (
                    entry.changed
                    and number in listed_spans
                    and listed_spans[number].size == entry.size
                ):
                    self._spans[table, entry] = (
                        listed_spans[number].first,
                        listed_spans[number].last,
                    )
            spans = {number: self.span_of(table, entry) for number, entry in sealed.items()}
            there = {number: span for number, span in spans.items() if span is not None}
            known = self._spans_of[table] = (sealed, there)
        return known[1]

    def _listed_in_overview(self) -> dict[int, Sealed]:
        """Return the segments that the overview files list, by segment number."""
        listed_spans: dict[int, Sealed] = {}
        pieces = self.pieces()
        # Files that list many segments come first, so that few files are opened.
        for piece in sorted(pieces, key=lambda piece: -piece.count):
            if not (piece.first in listed_spans and piece.last in listed_spans):
                with suppress(RunError):  # damaged: its segments are opened instead
                    footer = self.footer(f"{OVERVIEW}/{piece.level}", pieces[piece])
                    listed_spans |= {sealed.number: sealed for sealed in footer.sealed}
        return listed_spans

    def span(self, table: str) -> tuple[int, int] | None:
        """Return the first and last step of a table; None if the table has no rows."""
        return self.consistently(lambda: self._span(table))

    def footer(self, folder: str, entry: Entry) -> Footer:
        """Return the footer of a Parquet file; ``folder`` is relative to the run."""
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
        """Return the rows of a Parquet file that pass a filter.

        Parameters
        ----------
        folder : str
            The folder of the file, relative to the run.
        entry : Entry
            The file as it was listed.
        schema : pyarrow.Schema
            The schema of the file.
        columns : sequence of str
            The columns to return.
        rows : RowFilter
            The filter.

        Returns
        -------
        pyarrow.Table or None
            The rows; None if the steps or the row-group index already show that no row passes.

        Raises
        ------
        RunError
            If the file is damaged.
        FileNotFoundError
            If the file was removed or replaced since it was listed.
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
                    rows = rows.without(name)  # all rows of these groups meet this condition
        if not places:
            return None
        path = self.directory / folder / entry.name
        typed = pa.schema([schema.field(name) for name in dict.fromkeys((*columns, *rows.needs))])

        def read() -> pa.Table:
            with path.open(entry) as file:
                # On an object store, a few large requests are faster than many small ones.
                buffer = path.is_remote
                opened = pq.ParquetFile(file, metadata=footer.metadata, pre_buffer=buffer)
                found = opened.read_row_groups(places, typed.names, use_threads=False)
                return check_rows(found, typed)

        return rows.of(readable(path, read)).select(list(columns))

    def cached(self, entry: Entry, key: Hashable, make: Callable[[], Item]) -> Item:
        """Return the item that is cached for a file and a key; if there is none, call ``make()``.

        The result of ``make()`` is cached only if the file's time of change is known.
        """
        if not entry.changed:
            return make()
        return CACHE.get((self._identity, entry, key), make)

    def span_of(self, folder: str, entry: Entry) -> tuple[int, int] | None:
        """Return the first and last step of a Parquet file; None if the file has no rows."""
        known = self._spans.get((folder, entry))
        if known is None:
            groups = self.footer(folder, entry).groups
            if groups is not None:
                listed_spans = [(group.first, group.last) for group in groups]
            else:
                step = pa.schema([pa.field("step", pa.int64())])
                listed_spans = [_span_in(self.read_file(folder, entry, step, ["step"], ALL))]
            known = _joined(listed_spans)
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
    """Return rows of a table: :meth:`RunFiles.read` for callers that read the run only once."""
    return RunFiles(directory).read(table, columns, rows)


def fingerprint(directory: Address) -> str:
    """Return a text that changes whenever ``run.json`` or a table of the run changes."""
    return ";".join(f"{e.name}:{e.size}:{e.changed}" for e in _data_files(locate(directory)))


def last_written(address: Address) -> float:
    """Return the time of the last write to the run, in seconds since 1970; 0 if it is not known.

    On an object store, the writer rewrites ``.lock`` every few seconds; that counts as a write.
    """
    directory = locate(address)
    lock_file = [entry for entry in directory.entries() if entry.name == LOCK_FILE]
    return max((entry.changed for entry in (*lock_file, *_data_files(directory))), default=0) / 1e9


def _data_files(directory: Location) -> list[Entry]:
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
    """Return the first and last step of some rows; (1, 0) if there are no rows."""
    step = np.zeros(0, np.int64) if rows is None else numbers(rows["step"])
    return (int(step.min()), int(step.max())) if len(step) else NO_STEPS


def _joined(spans: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the first and last step of all spans together; (1, 0) if all spans are empty."""
    steps = [step for span in spans if span[0] <= span[1] for step in span]
    return (min(steps), max(steps)) if steps else NO_STEPS
