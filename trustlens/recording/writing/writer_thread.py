"""A thread that writes queued items, so that the training loop does not wait for files."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable
from typing import Final, Generic, TypeVar

Item = TypeVar("Item")

CAPACITY: Final = 4096
"""Maximum number of queued items; further ones are dropped and counted."""

MEMORY: Final = 1 << 28
"""Maximum total bytes of queued items, so that a hanging disk does not exhaust the memory."""

BATCH: Final = 64
"""Maximum number of items written together. Writing 64 steps takes about as long as writing one."""

LINGER: Final = 0.8
"""Seconds for which the thread collects items before it writes them. Not shorter, since each write
takes at least half a millisecond. Not longer, since a killed process loses the items not written,
and it must not lose more than the last second."""


class WriterThread(Generic[Item]):
    """Passes items, in order and in batches, to a function on a separate thread.

    The thread starts when an instance is created, and ends with :meth:`close`.

    Parameters
    ----------
    write : callable
        Called on the thread with a list of items. If it raises, it is not called again.
    capacity : int
        Maximum number of queued items.
    memory : int
        Maximum total size of the queued items in bytes.

    Attributes
    ----------
    dropped : int
        Number of items dropped so far.
    failure : BaseException or None
        The exception that ``write`` raised, if any.
    """

    def __init__(
        self,
        write: Callable[[list[Item]], None],
        *,
        capacity: int = CAPACITY,
        memory: int = MEMORY,
    ) -> None:
        self.dropped = 0
        self.failure: BaseException | None = None
        self._write = write
        self._memory = memory
        self._held = 0
        self._lock = threading.Lock()
        self._capacity = capacity
        # Not queue.Queue: it wakes its reader at each put, and training would wait for the lock.
        self._entries: collections.deque[tuple[Item, int] | threading.Event | None]
        self._entries = collections.deque()
        self._urgent = 0  # number of entries that a caller waits for
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trustlens-writer", daemon=True)
        self._thread.start()

    def put(self, item: Item, nbytes: int = 0, *, always: bool = False) -> bool:
        """Queue an item of ``nbytes`` bytes, without waiting.

        Return False if the queue was full and the item was dropped. An empty queue takes an item of
        any size. If ``always`` is True, the item is never dropped.
        """
        with self._lock:
            room = not self._held or self._held + nbytes <= self._memory
            if always or (room and len(self._entries) < self._capacity):
                self._entries.append((item, nbytes))
                self._held += nbytes
                if len(self._entries) == BATCH:
                    self._wake.set()
                return True
        self.drop()
        return False

    def drop(self) -> None:
        """Count an item as dropped."""
        with self._lock:
            self.dropped += 1

    def flush(self) -> None:
        """Wait until everything queued so far has been written."""
        done = threading.Event()
        self._put_urgent(done)
        while not done.wait(0.1) and self._thread.is_alive():
            pass

    def close(self) -> None:
        """Wait until everything has been written and the thread has ended."""
        self._put_urgent(None)
        self._thread.join()

    def _put_urgent(self, mark: threading.Event | None) -> None:
        with self._lock:
            self._entries.append(mark)
            self._urgent += 1
            self._wake.set()

    def _run(self) -> None:
        try:
            while self._write_next():
                pass
        except BaseException as error:  # noqa: BLE001 — reported by the recorder
            self._fail(error)

    def _write_next(self) -> bool:
        """Wait for items and write them. Return False after the last items, else True."""
        entries, marks, more = self._collect()
        if entries and self.failure is None:
            try:
                self._write([item for item, _ in entries])
            except BaseException as error:  # noqa: BLE001 — reported by the recorder
                self._fail(error)
        with self._lock:
            self._held -= sum(nbytes for _, nbytes in entries)
        entries.clear()  # free their memory before the waiting callers continue
        for mark in marks:
            mark.set()
        return more

    def _fail(self, error: BaseException) -> None:
        self.failure = error.with_traceback(None)  # a traceback keeps the items alive

    def _collect(self) -> tuple[list[tuple[Item, int]], list[threading.Event], bool]:
        """Wait for items and take up to `BATCH` of them from the queue.

        Returns
        -------
        list of (item, int)
            The items and their sizes in bytes.
        list of threading.Event
            Events of callers of :meth:`flush`, to set when these items are written.
        bool
            Whether more items may follow; False after :meth:`close`.
        """
        if not self._urgent and len(self._entries) < BATCH:
            self._wake.wait(LINGER)
        items: list[tuple[Item, int]] = []
        with self._lock:
            self._wake.clear()
            while self._entries and len(items) < BATCH:
                entry = self._entries.popleft()
                if isinstance(entry, tuple):
                    items.append(entry)
                    continue
                self._urgent -= 1
                return items, [] if entry is None else [entry], entry is not None
        return items, [], True
