"""Reading a run's tables while it may still be written: every row once, never a torn one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.parquet as pq

from trustlens.errors import RunError
from trustlens.store.columns import no_rows
from trustlens.store.layout import JOURNAL, SCHEMAS, journal_path, sealed_path

if TYPE_CHECKING:
    import pyarrow.compute as pc

_ATTEMPTS: Final = 20
_SEALED: Final = re.compile(r"(\d{6,})\.parquet")
_JOURNAL: Final = re.compile(r"([a-z]+)-(\d{6,})\.arrow")


def read_table(
    directory: Path,
    table: str,
    columns: Sequence[str] | None = None,
    where: pc.Expression | None = None,
) -> pa.Table:
    """Return the rows of a table, sealed and journalled, in no particular order.

    Parameters
    ----------
    directory : Path
        The run.
    table : str
        One of ``trustlens.schema.TABLES``.
    columns : sequence of str, optional
        The columns wanted; all if not given.
    where : pyarrow.compute.Expression, optional
        Keeps the rows for which it is true.

    Raises
    ------
    RunError
        A sealed file is damaged; the message names it.
    """
    wanted = list(columns) if columns is not None else SCHEMAS[table].names
    for _ in range(_ATTEMPTS):
        try:
            parts = list(_parts(directory, table, wanted, where))
            break
        except FileNotFoundError:
            continue  # a journal file was sealed between being listed and being opened: look again
    else:
        raise RunError(f"'{directory}' changes faster than it can be read; try again")
    schema = pa.schema([SCHEMAS[table].field(name) for name in wanted])
    return pa.concat_tables([no_rows(schema), *parts]).unify_dictionaries()


def _parts(
    directory: Path, table: str, columns: list[str], where: pc.Expression | None
) -> Iterator[pa.Table]:
    sealed, journalled = file_numbers(directory, table)
    for number in sorted(sealed):
        yield read_sealed(sealed_path(directory, table, number), table, columns, where)
    for number in sorted(journalled - sealed):
        rows = read_journal(journal_path(directory, table, number), table)
        if where is not None:
            rows = rows.filter(where)
        yield rows.select(columns)


def file_numbers(directory: Path, table: str) -> tuple[set[int], set[int]]:
    """Return the numbers of a table's sealed files, and of its journal's."""
    # The journal is listed first: what is sealed meanwhile is then seen as sealed.
    journalled = _numbers(directory / JOURNAL, _JOURNAL, table)
    return _numbers(directory / table, _SEALED), journalled


def next_number(directory: Path, table: str) -> int:
    """Return the number of a table's next file, sealed or not."""
    sealed, journalled = file_numbers(directory, table)
    return max(sealed | journalled, default=-1) + 1


def _numbers(folder: Path, pattern: re.Pattern[str], table: str | None = None) -> set[int]:
    try:
        names = [entry.name for entry in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return set()
    matches = [match for name in names if (match := pattern.fullmatch(name))]
    return {int(m.groups()[-1]) for m in matches if table is None or m.group(1) == table}


def read_sealed(
    path: Path, table: str, columns: list[str], where: pc.Expression | None = None
) -> pa.Table:
    """Return the rows of one sealed file; RunError if it is damaged."""
    schema = pa.schema([SCHEMAS[table].field(name) for name in columns])
    try:
        # Opened as a file, not as a data set: a data set guesses partitions from folder names. As
        # Arrow's own: its threads may drop one of Python's as the interpreter ends, and abort.
        with pa.OSFile(str(path), "rb") as file:
            return pq.read_table(file, columns=columns, filters=where).cast(schema)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(
            f"'{path}' is damaged or not a table of trustlens ({reason}); "
            "restore it, or move it away to read the rest of the run"
        ) from None


def read_journal(path: Path, table: str) -> pa.Table:
    """Return the rows of one journal file, up to its last whole batch."""
    return read_whole(path, table)[0]


def read_whole(path: Path, table: str) -> tuple[pa.Table, int]:
    """Return the rows of one journal file, and how many bytes of it are no whole batch."""
    schema = SCHEMAS[table]
    batches: list[pa.Table] = []
    torn = 0
    with pa.OSFile(str(path), "rb") as file:
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


def fingerprint(directory: Path) -> str:
    """Return a text that changes whenever what a reader would see has changed."""
    parts: list[str] = []
    for folder in (directory, directory / JOURNAL, *(directory / name for name in SCHEMAS)):
        try:
            entries = sorted(folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            try:
                status = entry.stat()
            except FileNotFoundError:
                continue
            if not entry.is_dir() and not entry.name.startswith("."):
                parts.append(f"{entry.name}:{status.st_size}:{status.st_mtime_ns}")
    return ";".join(parts)


def last_written(directory: Path) -> float:
    """Return the time of the last write to the run, in seconds since the epoch; 0 if unknown."""
    latest = 0.0
    for folder in (directory, directory / JOURNAL, *(directory / name for name in SCHEMAS)):
        try:
            latest = max(latest, *(entry.stat().st_mtime for entry in folder.iterdir()), 0.0)
        except (FileNotFoundError, NotADirectoryError):
            continue
    return latest
