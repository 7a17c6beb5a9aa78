"""A row-group index stored in the Parquet metadata, so that readers can skip row groups.

A file of the overview also lists the segments that it was made from, so that a reader of a long run
can tell which segment holds a step without opening them all.

Parquet's own statistics hold the same, but pyarrow aborts the process when it reads those of a file
with an inconsistent footer (pyarrow 26). Ours are in the file's key-value metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trustlens.store.arrow import numbers
from trustlens.store.row_filter import RowFilter
from trustlens.store.validation import LAST_STEP

INDEX: Final = b"trustlens"
FILES: Final = b"trustlens.files"
"""The keys under which they stand."""

NO_STEPS: Final = (1, 0)
"""The first and the last step of a file without rows."""


@dataclass(frozen=True, slots=True)
class Group:
    """A row group: how many rows, from and to which step, and its first and last text if sorted."""

    rows: int
    first: int
    last: int
    text: str | None = None
    texts: tuple[str, str] | None = None

    def may_have(self, rows: RowFilter) -> bool:
        """Tell whether it may have such rows."""
        if not rows.may_be_between(self.first, self.last):
            return False
        among = rows.texts.get(self.text) if self.text is not None else None
        if among is None or self.texts is None:
            return True
        low, high = self.texts
        return any(low <= text <= high for text in among)

    def all_have(self, name: str) -> bool:
        """Tell whether all of its rows have the same text in that column."""
        return self.text == name and self.texts is not None and self.texts[0] == self.texts[1]


def alphabetic(texts: Sequence[str]) -> NDArray[np.int64]:
    """Return the place of each text among them all in order, the order that groups rely on."""
    # Not numpy's own texts: all are as wide as the longest, and NULs at the end do not count.
    place = {text: i for i, text in enumerate(sorted(set(texts)))}
    return np.array([place[text] for text in texts], np.int64)


def groups_of(table: pa.Table, text: str | None, size: int) -> list[Group]:
    """Return the row groups of so many rows of a table that is sorted by a column of texts."""
    step = numbers(table["step"])
    names = None if text is None else table[text]
    found: list[Group] = []
    for begin in range(0, table.num_rows, size):
        some = step[begin : begin + size]
        last = begin + len(some) - 1
        texts = None if names is None else (names[begin].as_py(), names[last].as_py())
        found.append(Group(len(some), int(some.min()), int(some.max()), text, texts))
    return found


def written(groups: Sequence[Group]) -> dict[bytes, bytes]:
    """Return the key-value metadata that says so."""
    rows = [[g.rows, g.first, g.last, g.text, *(g.texts or ())] for g in groups]
    return {INDEX: json.dumps(rows).encode()}


def read_groups(metadata: pq.FileMetaData) -> list[Group] | None:
    """Return what a file says of its row groups; None if it does not say, or not of all."""
    try:
        told: Any = json.loads((metadata.metadata or {})[INDEX])
        groups = [_group(*each) for each in told]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    whole = len(groups) == metadata.num_row_groups
    return groups if whole and sum(g.rows for g in groups) == metadata.num_rows else None


def _group(rows: int, first: int, last: int, text: str | None, *texts: str) -> Group:
    kinds = (*(type(each) is int for each in (rows, first, last)), *map(_is_text, texts))
    if not all(kinds) or not _are_steps(first, last) or len(texts) not in {0, 2} or rows <= 0:
        raise ValueError("not a row group")
    return Group(rows, first, last, text, (texts[0], texts[1]) if texts else None)


def _are_steps(first: int, last: int) -> bool:
    return 0 <= first <= last <= LAST_STEP or (first, last) == NO_STEPS


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed file: its number, its bytes, its first and its last step."""

    number: int
    size: int
    first: int
    last: int


def sealed_written(files: Iterable[Sealed]) -> dict[bytes, bytes]:
    """Return the key-value metadata that tells of these files."""
    return {FILES: json.dumps([astuple(each) for each in files]).encode()}


def read_sealed_files(metadata: pq.FileMetaData) -> list[Sealed]:
    """Return the sealed files that a file of the overview tells of; none if it does not."""
    try:
        told: Any = json.loads((metadata.metadata or {})[FILES])
        return [_sealed(*each) for each in told]
    except (KeyError, TypeError, ValueError, RecursionError):
        return []


def _sealed(*told: int) -> Sealed:
    if any(type(each) is not int for each in told):
        raise ValueError("not a sealed file")
    sealed = Sealed(*told)
    if not _are_steps(sealed.first, sealed.last):
        raise ValueError("not a sealed file")
    return sealed
