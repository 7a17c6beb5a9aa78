"""What was made once and is kept, the least used going first where it is too much."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Kept = TypeVar("Kept")


class Memory(Generic[Key, Kept]):
    """Keeps what was made, by keys; safe for use by several threads.

    Parameters
    ----------
    most : int
        Of the sizes of all that is kept, at most; what is larger by itself is not kept.
    size : callable
        The size of one.
    """

    def __init__(self, most: int, size: Callable[[Kept], int]) -> None:
        self._most = most
        self._size = size
        self._lock = Lock()
        self._kept: OrderedDict[Key, Kept] = OrderedDict()
        self._sizes = 0

    def get(self, key: Key, make: Callable[[], Kept]) -> Kept:
        """Return what is kept under a key; made now if there is none.

        Two threads may make it at once: to make it is not to wait for another.
        """
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()
        with self._lock:
            if key not in self._kept and self._size(made) <= self._most:
                self._kept[key] = made
                self._sizes += self._size(made)
            while self._sizes > self._most:
                self._sizes -= self._size(self._kept.popitem(last=False)[1])
        return made
