"""What the row groups of a file hold, told in the file itself: who reads passes over the others.

Parquet's own statistics say as much, but pyarrow ends the process on reading those of a file whose
footer does not agree with itself (pyarrow 26). Ours stand in the file's key-value metadata.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from trustlens.store.columns import codes, numbers
from trustlens.store.selection import Rows

INDEX: Final = b"trustlens"
"""The key under which it stands."""


@dataclass(frozen=True, slots=True)
class Group:
    """A row group: how many rows, from and to which step, and its first and last text if sorted."""

    rows: int
    first: int
    last: int
    text: str | None = None
    texts: tuple[str, str] | None = None

    def may_have(self, rows: Rows) -> bool:
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


def groups_of(table: pa.Table, text: str | None, size: int) -> list[Group]:
    """Return the row groups of so many rows of a table that is sorted by a column of texts."""
    step = numbers(table["step"])
    places, names = codes(table[text]) if text is not None else (None, [])
    found: list[Group] = []
    for begin in range(0, table.num_rows, size):
        part = slice(begin, begin + size)
        texts = None if places is None else (names[places[part][0]], names[places[part][-1]])
        some = step[part]
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
    if not all(kinds) or len(texts) not in {0, 2} or rows <= 0:
        raise ValueError("not a row group")
    return Group(rows, first, last, text, (texts[0], texts[1]) if texts else None)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
