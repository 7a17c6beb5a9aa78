"""Rolling back sealed segments: rows after a step are removed, after the segment was copied."""

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


def kept_rows(rows: pa.Table, step: int, layers: Mapping[str, int]) -> NDArray[np.bool_]:
    """Return a mask, bool (rows,), that is True for the rows to keep.

    These are the rows up to ``step``. For a layer that is in ``layers``, these are the rows up to
    the step given there.
    """
    last: NDArray[np.int64] | int = step
    if layers and "layer" in rows.column_names:
        layer, names = codes(rows["layer"])
        last = np.array([layers.get(name, step) for name in names], np.int64)[layer]
    return numbers(rows["step"]) <= last


def roll_back_segment(
    path: Path, table: str, step: int, layers: Mapping[str, int], keep: Path
) -> None:
    """Remove from a segment the rows that :func:`kept_rows` excludes.

    If there are such rows, the segment is first copied to the folder ``keep``; otherwise nothing is
    done.
    """
    rows = read_sealed(path, table)
    kept = kept_rows(rows, step, layers)
    if not kept.all():
        _copy(path, keep)
        write_sealed(path, table, rows.filter(column(kept, pa.bool_())))


def _copy(path: Path, folder: Path) -> None:
    """Save a file, which will be replaced, in a folder: as a hard link if possible, else a copy."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, folder / path.name)
    except OSError:
        shutil.copy2(path, folder / path.name)
