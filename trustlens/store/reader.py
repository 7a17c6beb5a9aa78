"""Reading a run's tables while it may still be written: every row once, never a torn one."""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trustlens.errors import RunError
from trustlens.store.columns import no_rows
from trustlens.store.layout import JOURNAL, RUN_FILE, SCHEMAS, journal_path, sealed_path
from trustlens.store.places import Entry, Place, changed, entries, open_input
from trustlens.store.selection import ALL, Rows

_ATTEMPTS: Final = 20
_SEALED: Final = re.compile(r"(\d{6,18})\.parquet")
_JOURNAL: Final = re.compile(r"([a-z]+)-(\d{6,18})\.arrow")

_FOOTERS: Final = 128  # kept in memory, of about 100 KB each

_SETTLED: Final = 1_000_000_000
"""Nanoseconds after which a folder that has not changed since is not listed again: file systems
tell the time in ticks, and a change within the same tick would not show."""

_NONE: Final = (1, 0)

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class _Group:
    """A row group: its first and last step and name, as far as its statistics say."""

    place: int
    steps: tuple[int, int] | None
    names: tuple[str, str] | None

    def may_have(self, rows: Rows, texts: Collection[str] | None) -> bool:
        """Tell whether it may have such rows, of which the names are among these texts."""
        if self.steps is not None and not rows.may_be_between(*self.steps):
            return False
        if texts is None or self.names is None:
            return True
        low, high = self.names
        return any(low <= text <= high for text in texts)


@dataclass(frozen=True, slots=True)
class _Footer:
    """What a sealed file says of itself, and its row groups that are not empty."""

    metadata: pq.FileMetaData
    groups: tuple[_Group, ...]


class RunFiles:
    """The files of a run, for reading; what it learns of those that do not change it remembers.

    Parameters
    ----------
    directory : Place
        The run.
    """

    def __init__(self, directory: Place) -> None:
        self.directory = directory
        self._listed: dict[str, tuple[int, list[Entry]]] = {}
        self._footers: OrderedDict[tuple[str, Entry], _Footer] = OrderedDict()
        self._spans: dict[tuple[str, Entry], tuple[int, int]] = {}

    def read(self, table: str, columns: Sequence[str] | None = None, rows: Rows = ALL) -> pa.Table:
        """Return rows of a table, sealed and journalled, in no particular order.

        Parameters
        ----------
        table : str
            One of ``trustlens.schema.TABLES``.
        columns : sequence of str, optional
            The columns wanted; all if not given.
        rows : Rows
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

    def numbers(self, table: str) -> tuple[dict[int, Entry], set[int]]:
        """Return a table's sealed files by their numbers, and the numbers of its journal's only."""
        # The journal is listed first: what is sealed meanwhile is then seen as sealed.
        journal = _matched(entries(self.directory / JOURNAL), _JOURNAL)
        journalled = {int(number) for (name, number), _ in journal if name == table}
        sealed = {int(n): entry for (n,), entry in _matched(self.listed(table), _SEALED)}
        return sealed, journalled.difference(sealed)

    def listed(self, folder: str) -> list[Entry]:
        """Return what lies in a folder of the run; listed anew only if it has changed since."""
        now = changed(self.directory / folder)
        known = self._listed.get(folder)
        if known is not None and known[0] == now:
            return known[1]
        found = entries(self.directory / folder)
        if now is not None and now < time.time_ns() - _SETTLED:
            self._listed[folder] = (now, found)
        else:
            self._listed.pop(folder, None)
        return found

    def span(self, table: str) -> tuple[int, int] | None:
        """Return the first and the last step of a table; None if it has no rows."""
        return self.consistently(lambda: self._span(table))

    def span_of(self, table: str, number: int, entry: Entry) -> tuple[int, int] | None:
        """Return the first and the last step of a sealed file; None if it has no rows."""
        known = self._spans.get((table, entry))
        if known is None:
            groups = self.footer(table, number, entry).groups
            told = [group.steps for group in groups if group.steps is not None]
            if len(told) < len(groups):
                told = [_span_in(self._sealed(table, number, entry, ["step"], ALL))]
            known = self._spans[table, entry] = _joined(told)
        return known if known[0] <= known[1] else None

    def footer(self, table: str, number: int, entry: Entry) -> _Footer:
        """Return what a sealed file says of itself."""
        known = self._footers.get((table, entry))
        if known is None:
            path = sealed_path(self.directory, table, number)
            known = _readable(path, lambda: _footer(path, entry, table))
            self._footers[table, entry] = known
            if len(self._footers) > _FOOTERS:
                self._footers.popitem(last=False)
        else:
            self._footers.move_to_end((table, entry))
        return known

    def _span(self, table: str) -> tuple[int, int] | None:
        sealed, journalled = self.numbers(table)
        spans = [self.span_of(table, number, entry) for number, entry in sealed.items()]
        journals = [journal_path(self.directory, table, number) for number in journalled]
        spans += [_span_in(read_journal(path, table)) for path in journals]
        first, last = _joined([span for span in spans if span is not None])
        return (first, last) if first <= last else None

    def _parts(self, table: str, columns: list[str], rows: Rows) -> Iterator[pa.Table]:
        sealed, journalled = self.numbers(table)
        for number in sorted(sealed):
            part = self._sealed(table, number, sealed[number], columns, rows)
            if part is not None:
                yield part
        for number in sorted(journalled):
            part = read_journal(journal_path(self.directory, table, number), table)
            yield rows.of(part).select(columns)

    def _sealed(
        self, table: str, number: int, entry: Entry, columns: list[str], rows: Rows
    ) -> pa.Table | None:
        if rows.needs:
            span = self.span_of(table, number, entry)
            if span is None or not rows.may_be_between(*span):
                return None
        footer = self.footer(table, number, entry)
        texts = rows.texts.get(_name_of(table))
        groups = [group.place for group in footer.groups if group.may_have(rows, texts)]
        if not groups:
            return None
        path = sealed_path(self.directory, table, number)
        needed = list(dict.fromkeys((*columns, *rows.needs)))
        schema = pa.schema([SCHEMAS[table].field(name) for name in needed])

        def read() -> pa.Table:
            with open_input(path, entry) as file:
                opened = pq.ParquetFile(file, metadata=footer.metadata)
                return opened.read_row_groups(groups, needed, use_threads=False).cast(schema)

        return rows.of(_readable(path, read)).select(columns)


def read_table(
    directory: Place, table: str, columns: Sequence[str] | None = None, rows: Rows = ALL
) -> pa.Table:
    """Return rows of a table, as :meth:`RunFiles.read` does, of a run that is read once."""
    return RunFiles(directory).read(table, columns, rows)


def file_numbers(directory: Place, table: str) -> tuple[set[int], set[int]]:
    """Return the numbers of a table's sealed files, and of its journal's only."""
    sealed, journalled = RunFiles(directory).numbers(table)
    return set(sealed), journalled


def next_number(directory: Place, table: str) -> int:
    """Return the number of a table's next file, sealed or not."""
    sealed, journalled = file_numbers(directory, table)
    return max(sealed | journalled, default=-1) + 1


def read_sealed(path: Place, table: str) -> pa.Table:
    """Return the rows of one sealed file; RunError if it is damaged."""

    def read() -> pa.Table:
        with open_input(path) as file:
            return pq.ParquetFile(file).read(SCHEMAS[table].names).cast(SCHEMAS[table])

    return _readable(path, read)


def read_journal(path: Place, table: str) -> pa.Table:
    """Return the rows of one journal file, up to its last whole batch."""
    return read_whole(path, table)[0]


def read_whole(path: Place, table: str) -> tuple[pa.Table, int]:
    """Return the rows of one journal file, and how many bytes of it are no whole batch."""
    schema = SCHEMAS[table]
    batches: list[pa.Table] = []
    torn = 0
    with open_input(path) as file:
        size, whole = file.size(), 0
        try:
            reader = pa.ipc.open_stream(file)
            while True:
                whole = file.tell()
                batches.append(pa.Table.from_batches([reader.read_next_batch()]).cast(schema))
        except StopIteration:
            pass
        except (pa.ArrowException, OSError):  # being written, or so left as the process died
            torn = size - whole
    return pa.concat_tables([no_rows(schema), *batches]), torn


def fingerprint(directory: Place) -> str:
    """Return a text that changes whenever what a reader would see has changed."""
    return ";".join(f"{e.name}:{e.size}:{e.changed}" for e in _written(directory))


def last_written(directory: Place) -> float:
    """Return the time of the last write to the run, in seconds since the epoch; 0 if unknown."""
    return max((entry.changed for entry in _written(directory)), default=0) / 1e9


def _written(directory: Place) -> list[Entry]:
    found = [entry for entry in entries(directory) if entry.name == RUN_FILE]
    for folder in (JOURNAL, *SCHEMAS):
        listed = sorted(entries(directory / folder), key=lambda entry: entry.name)
        found += [entry for entry in listed if entry.is_plain and not entry.name.startswith(".")]
    return found


def _matched(
    found: Sequence[Entry], pattern: re.Pattern[str]
) -> Iterator[tuple[tuple[Any, ...], Entry]]:
    for entry in found:
        match = pattern.fullmatch(entry.name)
        if match:
            yield match.groups(), entry


def _name_of(table: str) -> str:
    """Return the column by which a table is sorted first."""
    return next(name for name in ("layer", "name", "step") if name in SCHEMAS[table].names)


def _footer(path: Place, entry: Entry, table: str) -> _Footer:
    with open_input(path, entry) as file:
        metadata = pq.read_metadata(file)
    names = metadata.schema.names
    step, name = names.index("step"), names.index(_name_of(table))
    found: list[_Group] = []
    for place in range(metadata.num_row_groups):
        group = metadata.row_group(place)
        if group.num_rows:
            texts = _range(group, name) if name != step else None
            found.append(_Group(place, _range(group, step), texts))
    return _Footer(metadata, tuple(found))


def _range(group: pq.RowGroupMetaData, place: int) -> Any:
    statistics = group.column(place).statistics
    if statistics is None or not statistics.has_min_max:
        return None
    return statistics.min, statistics.max


def _span_in(rows: pa.Table | None) -> tuple[int, int]:
    """Return the first and the last step of some rows; 1 and 0 if there are none."""
    step = np.zeros(0, np.int64) if rows is None else rows["step"].to_numpy()
    return (int(step.min()), int(step.max())) if len(step) else _NONE


def _joined(spans: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the first and the last step of all; 1 and 0 if there are none."""
    there = [span for span in spans if span[0] <= span[1]]
    if not there:
        return _NONE
    return min(first for first, _ in there), max(last for _, last in there)


def _readable(path: Place, read: Callable[[], Found]) -> Found:
    """Read of a sealed file; RunError if it is damaged."""
    try:
        return read()
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, KeyError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(
            f"'{path}' is damaged or not a table of trustlens ({reason}); "
            "restore it, or move it away to read the rest of the run"
        ) from None
