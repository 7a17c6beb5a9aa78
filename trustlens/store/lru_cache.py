"""A thread-safe LRU cache bounded by total size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any, Final, Protocol, TypeVar


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


Item = TypeVar("Item", bound=_Sized)


class LruCache:
    """Caches items that have ``nbytes``, and drops those that were not used for longest.

    Parameters
    ----------
    limit : int
        Maximum total size in bytes; a larger item is not cached.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = Lock()
        self._items: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._nbytes = 0

    @property
    def nbytes(self) -> int:
        """The total size of the cached items."""
        return self._nbytes

    def get(self, key: Hashable, make: Callable[[], Item]) -> Item:
        """Return the item that is cached under a key, or make it and cache it.

        Two threads may make the same item at once: neither waits for the other.
        """
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key][0]
        made = make()
        size = made.nbytes
        with self._lock:
            if key not in self._items and size <= self._limit:
                self._items[key] = made, size
                self._nbytes += size
            while self._nbytes > self._limit:
                self._nbytes -= self._items.popitem(last=False)[1][1]
        return made


CACHE: Final = LruCache(1 << 27)
"""The cache of all runs that this process reads: 128 MiB."""
