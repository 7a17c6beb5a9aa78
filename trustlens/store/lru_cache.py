"""A thread-safe cache of limited total size, which drops the least recently used items (LRU)."""

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
    """Caches items by key; if they exceed a total size, the least recently used items are dropped.

    The size of an item is its attribute ``nbytes``.

    Parameters
    ----------
    limit : int
        Maximum total size in bytes. An item that is larger than the limit is not cached.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = Lock()
        self._items: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._nbytes = 0

    @property
    def nbytes(self) -> int:
        """The total size of the cached items in bytes."""
        return self._nbytes

    def get(self, key: Hashable, make: Callable[[], Item]) -> Item:
        """Return the item that is cached under ``key``.

        If there is none, ``make()`` is called, and what it returns is cached and returned.

        Two threads that need the same item at the same time may both make it: neither waits for
        the other.
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
"""One cache for all runs that this process reads: at most 128 MiB."""
