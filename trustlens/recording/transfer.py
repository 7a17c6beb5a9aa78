"""From the device to the writer thread, without a wait in the training loop."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable
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

LINGER: Final = 0.8
"""Seconds for which the writer collects items before it hands them over: a hand-over takes half a
millisecond, whatever there is; what a killed process may lose is no older than a second."""


RING: Final = 1 << 23
"""Bytes on each device in which what was measured waits to be taken to the host."""

_ALIGNED: Final = 16  # bytes


class NoRoomError(Exception):
    """What was measured has no room on its device: the writer is too far behind."""


class Parcel:
    """A tensor on its way to the host; :meth:`open` waits for it, on the writer's thread."""

    def __init__(self, tensor: Tensor, fetch: Callable[[], None] | None = None) -> None:
        self.tensor = tensor
        self.nbytes = tensor.nbytes
        self._fetch = fetch

    def open(self) -> NDArray[Any]:
        """Return it as an array, once it has arrived."""
        if self._fetch is not None:
            self._fetch()
        return self.tensor.numpy()

    def arrive(self, tensor: Tensor) -> None:
        """Be told that it has arrived as this tensor."""
        self.tensor, self._fetch = tensor, None


class Ring:
    """Memory on a device where parcels wait until one copy takes all of them to the host.

    The training's thread puts them in, by copies within the device, and never waits. The writer's
    thread takes them out, on a stream of its own, behind what was put in.

    Parameters
    ----------
    device : torch.device
        The device.
    size : int
        Bytes of it.
    """

    def __init__(self, device: torch.device, size: int = RING) -> None:
        self._memory = torch.empty(size, dtype=torch.uint8, device=device)
        on_device = device.type != "cpu"
        self._host = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=on_device)
        self._stream = torch.cuda.Stream(device) if on_device else None
        self._lock = threading.Lock()
        self._taking = threading.Lock()
        self._waiting: list[tuple[Parcel, int, Any]] = []
        self._begin = self._end = 0  # of what is in use, in bytes put in since the beginning

    def put(self, tensor: Tensor) -> Parcel:
        """Put a tensor in, without waiting.

        Raises
        ------
        NoRoomError
            Too much is waiting.
        """
        size, needed = len(self._memory), -(-tensor.nbytes // _ALIGNED) * _ALIGNED
        with self._lock:
            begin = self._end
            if begin % size + needed > size:
                begin += size - begin % size  # in one piece: the end of the memory stays empty
            if begin + needed - self._begin > size:
                raise NoRoomError
            self._end = begin + needed
            at = begin % size
            place = self._memory[at : at + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            place.copy_(tensor)
            event = None
            if self._stream is not None:
                event = torch.cuda.Event()
                event.record(torch.cuda.current_stream(tensor.device))
            parcel = Parcel(place, self.take)
            self._waiting.append((parcel, at, event))
            return parcel

    def take(self) -> None:
        """Take all that waits to the host, and wait until it is there."""
        with self._taking:
            with self._lock:
                waiting, self._waiting = self._waiting, []
                begin, end = self._begin, self._end
            self._copy(begin, end, [event for *_, event in waiting])
            for parcel, at, _ in waiting:
                here = self._host[at : at + parcel.nbytes].clone()
                parcel.arrive(here.view(parcel.tensor.dtype).view(parcel.tensor.shape))
            with self._lock:
                self._begin = end

    def _copy(self, begin: int, end: int, events: list[Any]) -> None:
        size = len(self._memory)
        first, last = begin % size, begin % size + end - begin
        pieces = [(first, min(last, size)), (0, max(last - size, 0))]
        if self._stream is None:
            for start, stop in pieces:
                self._host[start:stop].copy_(self._memory[start:stop])
            return
        with torch.cuda.stream(self._stream):
            for event in events:
                self._stream.wait_event(event)
            for start, stop in pieces:
                self._host[start:stop].copy_(self._memory[start:stop], non_blocking=True)
            arrival = torch.cuda.Event()
            arrival.record(self._stream)
        arrival.synchronize()


_rings: Final[dict[torch.device, Ring]] = {}
_rings_lock: Final = threading.Lock()


def send(tensor: Tensor) -> Parcel:
    """Send a tensor to the host without waiting; the caller must not write to it any more.

    Raises
    ------
    NoRoomError
        Too much waits on its device.
    """
    tensor = tensor.detach()
    if tensor.device.type == "cpu":
        return Parcel(tensor)
    if tensor.device.type != "cuda" or tensor.nbytes > RING // 4:
        return _sent_alone(tensor)
    with _rings_lock:
        ring = _rings.get(tensor.device)
        if ring is None:
            ring = _rings[tensor.device] = Ring(tensor.device)
    return ring.put(tensor)


def _sent_alone(tensor: Tensor) -> Parcel:
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
    pinned.copy_(tensor, non_blocking=True)
    arrival = torch.Event(tensor.device.type)
    arrival.record()
    return Parcel(pinned, arrival.synchronize)


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
        # Not a queue.Queue, which wakes its reader at each put: the training would wait for it.
        self._entries: collections.deque[tuple[Item, int] | threading.Event | None]
        self._entries = collections.deque()
        self._urgent = 0  # entries that somebody waits for
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trustlens-writer", daemon=True)
        self._thread.start()

    def put(self, item: Item, nbytes: int = 0, *, always: bool = False) -> bool:
        """Hand an item over without waiting; False if there was no room and it was dropped.

        Whatever its size, one item finds room where nothing waits; one that is not to be lost,
        ``always``.
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
        """Count an item that had no room."""
        with self._lock:
            self.dropped += 1

    def flush(self) -> None:
        """Wait until everything put so far was handed over."""
        done = threading.Event()
        self._put_urgent(done)
        while not done.wait(0.1) and self._thread.is_alive():
            pass

    def close(self) -> None:
        """Wait until everything was handed over and the thread has ended."""
        self._put_urgent(None)
        self._thread.join()

    def _put_urgent(self, mark: threading.Event | None) -> None:
        with self._lock:
            self._entries.append(mark)
            self._urgent += 1
            self._wake.set()

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
        entries.clear()  # who waits may count on their memory
        for mark in marks:
            mark.set()
        return more

    def _fail(self, error: BaseException) -> None:
        self.failure = error.with_traceback(None)  # it would hold the items that were at work

    def _collect(self) -> tuple[list[tuple[Item, int]], list[threading.Event], bool]:
        """Return the next items with their sizes, who waits for them, and whether more come."""
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
