"""Many runs as one Arrow data set, for query engines such as DuckDB, Polars and Dask."""

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

_WILDCARDS: Final = "*?["


def dataset(pattern: str | os.PathLike[str], table: str = "layers") -> ds.Dataset:
    """Return one table of many runs as a data set, with a column that names the run.

    The call reads no rows: DuckDB, Polars and Dask accept the data set and read what they need.
    The data set consists of the Parquet files that exist at the time of the call. If a run is being
    recorded, its newest rows are not in these files yet.

    Parameters
    ----------
    pattern : str or path
        Path or address of runs, or of folders that contain runs. It may have wildcards:
        ``runs/sweep-*``, ``s3://bucket/sweep/*``.
    table : str
        ``"layers"``, ``"steps"``, ``"metrics"`` or ``"histograms"``.

    Returns
    -------
    pyarrow.dataset.Dataset
        The table's columns, and the column ``run``. A value of ``run`` is the path of the run
        relative to the folders before the first wildcard: ``"sweep-1"`` for the pattern
        ``runs/sweep-*``. If this relative path is empty, the value is the name of the run's folder.

    Raises
    ------
    UsageError
        If no run matches, or ``table`` is not the name of a table.
    RunError
        If the object store does not answer.

    Examples
    --------
    >>> data = trustlens.dataset("s3://bucket/sweep/*")
    >>> duckdb.sql("SELECT run, avg(trust_ratio) FROM data GROUP BY run")
    """
    import pyarrow.dataset as ds  # noqa: PLC0415 — slow to import

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
    """Yield name and location of each run that matches the pattern or is below a matching folder.

    The name is the run's value in the column ``run`` of :func:`dataset`.
    """
    if "://" in pattern and not pattern.startswith("file://"):
        address, question, options = pattern.partition("?")
        root, rest = _split_at_wildcard(address)
        base = locate(root + question + options)
        found = _matching_folders(base, PurePosixPath(rest).parts)
    else:
        local = pattern.removeprefix("file://")
        root, rest = _split_at_wildcard(local)
        base = LocalLocation(Path(root or "."))
        found = (LocalLocation(Path(path)) for path in glob.glob(local))  # noqa: PTH207 — Path.glob rejects absolute patterns
    for folder in found:
        for run in _runs_in(folder):
            yield str(run)[len(str(base)) :].strip("/") or run.name, run


def _split_at_wildcard(pattern: str) -> tuple[str, str]:
    """Return the path before the first part with a wildcard, and the rest of the pattern."""
    parts = pattern.rstrip("/").split("/")
    first = next(
        (i for i, part in enumerate(parts) if any(c in part for c in _WILDCARDS)), len(parts)
    )
    root = "/".join(parts[:first]) or ("/" if pattern.startswith("/") else "")
    return root, "/".join(parts[first:])


def _matching_folders(base: Location, parts: tuple[str, ...]) -> Iterator[Location]:
    """Yield the folders below ``base`` that match ``parts``.

    ``parts`` contains one pattern for each level of folders. Without patterns, yield ``base``.
    """
    if not parts:
        yield base
        return
    for entry in base.entries():
        if not entry.is_plain and fnmatchcase(entry.name, parts[0]):
            yield from _matching_folders(base / entry.name, parts[1:])


def _runs_in(folder: Location) -> Iterator[Location]:
    """Yield the folder itself if it is a run, else every run below it."""
    if (folder / RUN_FILE).exists():
        yield folder
        return
    for entry in folder.entries():
        if not entry.is_plain and not entry.name.startswith("."):
            yield from _runs_in(folder / entry.name)
