"""The numbers of a run's segments, found from the names of sealed segments and journals."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from trustlens.store.address import Address, locate
from trustlens.store.layout import JOURNAL

_SEALED: Final = re.compile(r"(\d{6,18})\.parquet")
_JOURNAL: Final = re.compile(r"([a-z]+)-(\d{6,18})\.arrow")


def sealed_in(names: Iterable[str]) -> dict[int, str]:
    """Return the names that are those of sealed segments, by segment number in ascending order."""
    matches = (match for name in names if (match := _SEALED.fullmatch(name)))
    return dict(sorted((int(match[1]), match[0]) for match in matches))


def sealed_numbers(directory: Address, table: str) -> set[int]:
    """Return the numbers of a table's sealed segments."""
    return set(sealed_in((locate(directory) / table).names()))


def journal_numbers(directory: Address, table: str) -> set[int]:
    """Return the numbers of a table's journals, even of those that also have a sealed segment."""
    names = (locate(directory) / JOURNAL).names()
    matches = (match for name in names if (match := _JOURNAL.fullmatch(name)))
    return {int(match[2]) for match in matches if match[1] == table}


def next_number(directory: Address, table: str) -> int:
    """Return the number for a new segment of a table: one more than the highest in use, or 0."""
    numbers = sealed_numbers(directory, table) | journal_numbers(directory, table)
    return max(numbers, default=-1) + 1
