"""Many runs as one data set, for query engines that read more than fits in memory."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from trustlens.errors import UsageError
from trustlens.schema import TABLES
from trustlens.store.address import locate
from trustlens.store.layout import RUN_FILE, SCHEMAS
from trustlens.store.location import LocalLocation, Location

if TYPE_CHECKING:
    import pyarrow.dataset as ds

_WILD: Final = "*?["


def dataset(pattern: str | os.PathLike[str], table: str = "layers") -> ds.Dataset:
    """Return one table of many runs as a data set, with a column that names the run.

    Nothing is read yet: DuckDB, Polars and Dask take the data set as it is and read what they
    need. It has the sealed files; the newest rows of a run that is being recorded appear with its
    next file.

    Parameters
    ----------
    pattern : str or path
        Runs, or folders of runs, on this machine or on an object store: ``runs/sweep-*``,
        ``s3://bucket/sweep/*``.
    table : str
        ``"layers"``, ``"steps"``, ``"metrics"`` or ``"histograms"``.

    Returns
    -------
    pyarrow.dataset.Dataset
        The table's columns and ``run``: the run's path after the part of the pattern that has no
        wildcard, or its name.

    Raises
    ------
    UsageError
        No run matches, or there is no such table.
    RunError
        The object store does not answer.

    Examples
    --------
    >>> data = trustlens.dataset("s3://bucket/sweep/*")
    >>> duckdb.sql("SELECT run, avg(trust_ratio) FROM data GROUP BY run")
    """
    import pyarrow.dataset as ds  # noqa: PLC0415 — slow to import, and needed here only

    if table not in TABLES:
        raise UsageError(f"'{table}' is not a table; choose one of: {', '.join(TABLES)}")
    text = os.fspath(pattern)
    runs = dict(_runs(text))
    if not runs:
        raise UsageError(f"no run matches '{text.split('?')[0] if '://' in text else text}'")
    files = [
        (f"{run.filesystem_path}/{table}/{entry.name}", name)
        for name, run in sorted(runs.items())
        for entry in (run / table).entries()
        if entry.is_plain and entry.name.endswith(".parquet") and not entry.name.startswith(".")
    ]
    schema = SCHEMAS[table].append(pa.field("run", pa.string()))
    return ds.FileSystemDataset.from_paths(
        [path for path, _ in files],
        schema=schema,
        format=ds.ParquetFileFormat(),
        filesystem=next(iter(runs.values())).filesystem,
        partitions=[ds.field("run") == name for _, name in files],
    )


def _runs(pattern: str) -> Iterator[tuple[str, Location]]:
    """Yield name and location of each run that matches, or is in a folder that matches."""
    if "://" in pattern and not pattern.startswith("file://"):
        address, question, options = pattern.partition("?")
        root, wild = _divided(address)
        base = locate(root + question + options)
        found = _matching(base, PurePosixPath(wild).parts)
    else:
        local = pattern.removeprefix("file://")
        root, wild = _divided(local)
        base = LocalLocation(Path(root or "."))
        found = (LocalLocation(Path(path)) for path in glob.glob(local))  # noqa: PTH207 — it may be absolute
    for each in found:
        for run in _in(each):
            yield str(run)[len(str(base)) :].strip("/") or run.name, run


def _divided(pattern: str) -> tuple[str, str]:
    """Return the folders of a pattern that have no wildcard, and the rest."""
    parts = pattern.rstrip("/").split("/")
    wild = next((i for i, part in enumerate(parts) if any(c in part for c in _WILD)), len(parts))
    return "/".join(parts[:wild]) or ("/" if pattern.startswith("/") else ""), "/".join(
        parts[wild:]
    )


def _matching(base: Location, parts: tuple[str, ...]) -> Iterator[Location]:
    if not parts:
        yield base
        return
    for entry in base.entries():
        if not entry.is_plain and fnmatchcase(entry.name, parts[0]):
            yield from _matching(base / entry.name, parts[1:])


def _in(folder: Location) -> Iterator[Location]:
    """Yield the folder itself if it is a run, else the runs below it."""
    if (folder / RUN_FILE).exists():
        yield folder
        return
    for entry in folder.entries():
        if not entry.is_plain and not entry.name.startswith("."):
            yield from _in(folder / entry.name)
