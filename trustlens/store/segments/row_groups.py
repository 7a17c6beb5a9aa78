"""A row-group index stored in the Parquet metadata, so that readers can skip row groups.

An overview file also lists the segments that it was made from, with their first and last steps. So
a reader of a long run finds the segments that have a step without opening all segments.

Parquet's own statistics contain the same as the index. They are not used: pyarrow 26 aborts the
process when it reads the statistics of a file with an inconsistent footer. The index is stored as
key-value metadata instead.
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
"""The metadata keys of the row-group index and of the list of segments."""

NO_STEPS: Final = (1, 0)
"""Used as the first and last step of a file without rows."""


@dataclass(frozen=True, slots=True)
class Group:
    """What the row-group index says about one row group.

    Attributes
    ----------
    rows : int
        Number of rows.
    first, last : int
        The smallest and the largest step.
    text : str or None
        The text column by which the file is sorted first; None if it is sorted by step only.
    texts : (str, str) or None
        The smallest and the largest value of the column ``text``; None if there is no such column.
    """

    rows: int
    first: int
    last: int
    text: str | None = None
    texts: tuple[str, str] | None = None

    def may_have(self, rows: RowFilter) -> bool:
        """Return whether the row group may have rows that pass a filter."""
        if not rows.may_be_between(self.first, self.last):
            return False
        among = rows.texts.get(self.text) if self.text is not None else None
        if among is None or self.texts is None:
            return True
        low, high = self.texts
        return any(low <= text <= high for text in among)

    def all_have(self, name: str) -> bool:
        """Return whether all rows of the group are known to have one value in column ``name``."""
        return self.text == name and self.texts is not None and self.texts[0] == self.texts[1]


def alphabetical_ranks(texts: Sequence[str]) -> NDArray[np.int64]:
    """Return the rank of each text in alphabetical order, int64 (n,): 0 for the first."""
    # Not with numpy's strings: each is as wide as the longest, and NULs at the end are lost.
    rank = {text: i for i, text in enumerate(sorted(set(texts)))}
    return np.array([rank[text] for text in texts], np.int64)


def groups_of(table: pa.Table, text: str | None, size: int) -> list[Group]:
    """Describe the row groups, of ``size`` rows, in which a table sorted by ``text`` is written."""
    step = numbers(table["step"])
    names = None if text is None else table[text]
    groups: list[Group] = []
    for begin in range(0, table.num_rows, size):
        some = step[begin : begin + size]
        last = begin + len(some) - 1
        texts = None if names is None else (names[begin].as_py(), names[last].as_py())
        groups.append(Group(len(some), int(some.min()), int(some.max()), text, texts))
    return groups


def groups_metadata(groups: Sequence[Group]) -> dict[bytes, bytes]:
    """Return the key-value metadata that stores a row-group index."""
    rows = [[g.rows, g.first, g.last, g.text, *(g.texts or ())] for g in groups]
    return {INDEX: json.dumps(rows).encode()}


def read_groups(metadata: pq.FileMetaData) -> list[Group] | None:
    """Return the row-group index of a file; None if the index is missing, invalid or incomplete."""
    try:
        parsed: Any = json.loads((metadata.metadata or {})[INDEX])
        groups = [_group(*each) for each in parsed]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    is_complete = len(groups) == metadata.num_row_groups
    return groups if is_complete and sum(g.rows for g in groups) == metadata.num_rows else None


def _group(rows: int, first: int, last: int, text: str | None, *texts: str) -> Group:
    valid = (*(type(each) is int for each in (rows, first, last)), *map(_is_text, texts))
    if not all(valid) or not _are_steps(first, last) or len(texts) not in {0, 2} or rows <= 0:
        raise ValueError("not a row group")
    return Group(rows, first, last, text, (texts[0], texts[1]) if texts else None)


def _are_steps(first: int, last: int) -> bool:
    return 0 <= first <= last <= LAST_STEP or (first, last) == NO_STEPS


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed segment as an overview file lists it: number, size in bytes, first and last step."""

    number: int
    size: int
    first: int
    last: int


def segments_metadata(files: Iterable[Sealed]) -> dict[bytes, bytes]:
    """Return the key-value metadata that stores a list of segments."""
    return {FILES: json.dumps([astuple(each) for each in files]).encode()}


def read_sealed_files(metadata: pq.FileMetaData) -> list[Sealed]:
    """Return the segments that an overview file lists; empty if the file has no valid list."""
    try:
        parsed: Any = json.loads((metadata.metadata or {})[FILES])
        return [_sealed(*each) for each in parsed]
    except (KeyError, TypeError, ValueError, RecursionError):
        return []


def _sealed(*parsed: int) -> Sealed:
    if any(type(each) is not int for each in parsed):
        raise ValueError("not a segment")
    sealed = Sealed(*parsed)
    if not _are_steps(sealed.first, sealed.last):
        raise ValueError("not a segment")
    return sealed
