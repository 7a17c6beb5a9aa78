"""A cache of results computed from runs; a result is valid until one of its runs changes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

from trustlens.analysis.run import Run

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _CachedResult:
    version: Hashable
    result: Any
    size: int


class Results:
    """A thread-safe LRU cache that holds the newest version of each result.

    Parameters
    ----------
    limit : int
        Maximum total size in bytes. The least recently used results are evicted first. A result
        larger than the limit is not cached.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = Lock()
        self._cached: OrderedDict[tuple[Hashable, tuple[Run, ...]], _CachedResult] = OrderedDict()
        self._size = 0

    def get(
        self,
        name: Hashable,
        runs: tuple[Run, ...],
        version: Hashable,
        compute: Callable[[], Result],
        size: Callable[[Result], int],
    ) -> Result:
        """Return the cached result if it has this version, else compute it.

        Two threads may compute the same result at the same time; neither waits for the other.

        Parameters
        ----------
        name, runs : hashable
            Together, the key of the result. ``runs`` are the runs from which the result is
            computed; :meth:`keep_only` removes the result if one of them no longer exists.
        version : hashable
            A value that changes whenever the result would change.
        compute : callable
            Compute the result. If it raises an exception, the caller receives the exception and
            nothing is cached.
        size : callable
            Return the approximate size of a result in bytes.
        """
        key = (name, runs)
        with self._lock:
            kept = self._cached.get(key)
            if kept is not None and kept.version == version:
                self._cached.move_to_end(key)
                return kept.result
        result = compute()
        kept = _CachedResult(version, result, size(result))
        with self._lock:
            self._drop(key)
            if kept.size <= self._limit:
                self._cached[key] = kept
                self._size += kept.size
            while self._size > self._limit:
                self._drop(next(iter(self._cached)))
        return result

    def keep_only(self, runs: Collection[Run]) -> None:
        """Remove each result that was computed from a run which is not in ``runs``."""
        with self._lock:
            for key in [key for key in self._cached if not set(key[1]).issubset(runs)]:
                self._drop(key)

    def _drop(self, key: tuple[Hashable, tuple[Run, ...]]) -> None:
        kept = self._cached.pop(key, None)
        if kept is not None:
            self._size -= kept.size
