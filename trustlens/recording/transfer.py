"""From the device to the writer thread, without a wait in the training loop."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Item = TypeVar("Item")

CAPACITY: Final = 4096
"""Items that may wait for the writer; what comes while it is full is dropped and counted."""

MEMORY: Final = 1 << 28
"""Bytes that may wait: a disk that hangs must not use up the memory that the training needs."""

BATCH: Final = 64
"""Items handed over together at most: one Arrow batch costs much the same for 1 or 64 steps."""

LINGER: Final = 0.25
"""Seconds for which the writer collects items before it hands them over."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """A tensor on its way to the host; :meth:`open` waits for it, on the writer's thread."""

    tensor: Tensor
    arrival: Any = None

    def open(self) -> NDArray[Any]:
        """Return it as an array, once it has arrived."""
        if self.arrival is not None:
            self.arrival.synchronize()
        return self.tensor.numpy()


def send(tensor: Tensor) -> Parcel:
    """Start copying a tensor to the host; the caller must not write to it any more."""
    tensor = tensor.detach()
    if tensor.device.type == "cpu":
        return Parcel(tensor)
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
    pinned.copy_(tensor, non_blocking=True)
    arrival = torch.Event(tensor.device.type)
    arrival.record()
    return Parcel(pinned, arrival)


class WriterThread(Generic[Item]):
    """Hands items, in order and in batches, to a function on a thread of its own.

    If the function raises, nothing more is handed over and :attr:`failure` holds the error.
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
        self._queue: queue.Queue[tuple[Item, int] | threading.Event | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="trustlens-writer", daemon=True)
        self._thread.start()

    def put(self, item: Item, nbytes: int = 0, *, always: bool = False) -> bool:
        """Hand an item over without waiting; False if there was no room and it was dropped.

        Whatever its size, one item finds room where nothing waits; one that is not to be lost,
        ``always``.
        """
        with self._lock:
            room = not self._held or self._held + nbytes <= self._memory
            if always or (room and self._queue.qsize() < self._capacity):
                self._queue.put((item, nbytes))
                self._held += nbytes
                return True
            self.dropped += 1
            return False

    def flush(self) -> None:
        """Wait until everything put so far was handed over."""
        done = threading.Event()
        self._queue.put(done)
        while not done.wait(0.1) and self._thread.is_alive():
            pass

    def close(self) -> None:
        """Wait until everything was handed over and the thread has ended."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._hand_over():
                pass
        except BaseException as error:  # noqa: BLE001 — the training must not see it
            self._fail(error)

    def _hand_over(self) -> bool:
        """Wait for items and hand them over; return whether more may come."""
        entries, marks, more = self._collect()
        if entries and self.failure is None:
            try:
                self._write([item for item, _ in entries])
            except BaseException as error:  # noqa: BLE001 — the training must not see it
                self._fail(error)
        with self._lock:
            self._held -= sum(nbytes for _, nbytes in entries)
        for mark in marks:
            mark.set()
        return more

    def _fail(self, error: BaseException) -> None:
        self.failure = error.with_traceback(None)  # it would hold the items that were at work

    def _collect(self) -> tuple[list[tuple[Item, int]], list[threading.Event], bool]:
        """Return the next items with their sizes, who waits for them, and whether more come."""
        items: list[tuple[Item, int]] = []
        deadline: float | None = None
        while len(items) < BATCH:
            timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                entry = self._queue.get(timeout=timeout)
            except queue.Empty:
                break
            if entry is None:
                return items, [], False
            if isinstance(entry, threading.Event):
                return items, [entry], True
            items.append(entry)
            deadline = deadline or time.monotonic() + LINGER
        return items, [], True


def host_scalar(value: Any) -> float | Parcel:
    """Return a logged value as a float, or on its way if it lies on an accelerator.

    Raises
    ------
    ValueError, TypeError
        It is not one number.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"a tensor of shape {tuple(value.shape)}")
        value = value.detach()
        if value.device.type != "cpu":
            return send(value.reshape(()).double())
    return float(value)


def opened_scalar(value: float | Parcel) -> float:
    """Return the number itself, waiting for it where it is on its way."""
    return float(np.asarray(value.open())) if isinstance(value, Parcel) else value
