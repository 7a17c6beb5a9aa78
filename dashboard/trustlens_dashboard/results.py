"""A cache of results computed from runs, each kept until its runs change."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

from trustlens.analysis.run import Run

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Kept:
    version: Hashable
    result: Any
    size: int


class Results:
    """A cache that keeps the newest version of each result; safe for use by several threads.

    Parameters
    ----------
    limit : int
        Total size in bytes; the results that were not used for longest are dropped first. A
        result that is larger by itself is not kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = Lock()
        self._kept: OrderedDict[tuple[Hashable, tuple[Run, ...]], _Kept] = OrderedDict()
        self._size = 0

    def get(
        self,
        what: Hashable,
        runs: tuple[Run, ...],
        version: Hashable,
        compute: Callable[[], Result],
        size: Callable[[Result], int],
    ) -> Result:
        """Return a result, computed unless it is kept in this version.

        Two threads may compute the same result at once: neither waits for the other.

        Parameters
        ----------
        what, runs, version : hashable
            What was computed, from which runs, and a value that changes when the result would.
        compute : callable
            Computes the result; what it raises is not kept.
        size : callable
            About how many bytes a result takes.
        """
        key = (what, runs)
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None and kept.version == version:
                self._kept.move_to_end(key)
                return kept.result
        result = compute()
        kept = _Kept(version, result, size(result))
        with self._lock:
            self._drop(key)
            if kept.size <= self._limit:
                self._kept[key] = kept
                self._size += kept.size
            while self._size > self._limit:
                self._drop(next(iter(self._kept)))
        return result

    def keep_only(self, runs: Collection[Run]) -> None:
        """Drop the results of all other runs."""
        with self._lock:
            for key in [key for key in self._kept if not set(key[1]).issubset(runs)]:
                self._drop(key)

    def _drop(self, key: tuple[Hashable, tuple[Run, ...]]) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._size -= kept.size
