"""Removing rows from sealed segments at a rollback; copies of the segments are kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trustlens.store.arrow import codes, column, numbers
from trustlens.store.segments.contents import read_sealed
from trustlens.store.segments.sealed import write_sealed


def stays(rows: pa.Table, step: int, layers: Mapping[str, int]) -> NDArray[np.bool_]:
    """Return which rows are not after ``step``, or after the last step of their layer."""
    last: NDArray[np.int64] | int = step
    if layers and "layer" in rows.column_names:
        layer, names = codes(rows["layer"])
        last = np.array([layers.get(name, step) for name in names], np.int64)[layer]
    return numbers(rows["step"]) <= last


def keep_rows(path: Path, table: str, step: int, layers: Mapping[str, int], keep: Path) -> None:
    """Keep only the rows that stay in a segment; a copy of it goes to the folder ``keep``."""
    rows = read_sealed(path, table)
    these = stays(rows, step, layers)
    if not these.all():
        _keep(path, keep)
        write_sealed(path, table, rows.filter(column(these, pa.bool_())))


def _keep(path: Path, folder: Path) -> None:
    """Copy a file that will be replaced, by a hard link if the file system has them."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, folder / path.name)
    except OSError:
        shutil.copy2(path, folder / path.name)
