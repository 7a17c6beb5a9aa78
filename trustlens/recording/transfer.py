"""Asynchronous copies from the device to the host."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RING: Final = 1 << 23
"""Size in bytes of the ring buffer on each device."""

_ALIGNED: Final = 16
"""Each tensor in a ring buffer begins at a multiple of this many bytes."""


class NoRoomError(Exception):
    """The ring buffer of a device is full, since the writer thread is too slow."""


class Parcel:
    """A tensor whose copy to the host may still be under way.

    The training thread creates it; the writer thread waits for the copy in :meth:`open`.

    Parameters
    ----------
    tensor : Tensor
        The tensor on the host to which the copy is written. It may also be the tensor on the
        device: then ``fetch`` calls :meth:`arrive`, to replace it by the complete copy.
    fetch : callable, optional
        Function that waits until the copy is complete. None if the tensor is already on the host.
    """

    def __init__(self, tensor: Tensor, fetch: Callable[[], None] | None = None) -> None:
        self.tensor = tensor
        self.nbytes = tensor.nbytes
        self._fetch = fetch

    def open(self) -> NDArray[Any]:
        """Wait until the tensor has arrived and return it as an array."""
        if self._fetch is not None:
            self._fetch()
        return self.tensor.numpy()

    def arrive(self, tensor: Tensor) -> None:
        """Replace the tensor by its complete copy on the host."""
        self.tensor, self._fetch = tensor, None


class Ring:
    """A ring buffer on a device, whose contents are copied to the host together.

    The training thread copies tensors into the buffer, on the device, and never waits. The writer
    thread copies the buffer to the host on a separate stream; that stream first waits until the
    tensors are in the buffer.

    Parameters
    ----------
    device : torch.device
        The device.
    size : int
        Size of the buffer in bytes.
    """

    def __init__(self, device: torch.device, size: int = RING) -> None:
        on_device = device.type != "cpu"
        # The first tensor may come from `log` in inference mode. A buffer allocated in that mode
        # could not be written to outside of it.
        with torch.inference_mode(mode=False):
            self._memory = torch.empty(size, dtype=torch.uint8, device=device)
            self._host = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=on_device)
        self._stream = torch.cuda.Stream(device) if on_device else None
        self._lock = threading.Lock()
        self._taking = threading.Lock()
        self._waiting: list[tuple[Parcel, int, Any]] = []
        # Begin and end of the part in use, as numbers of bytes written since the start.
        self._begin = self._end = 0

    def put(self, tensor: Tensor) -> Parcel:
        """Copy a tensor into the buffer, without waiting.

        Raises
        ------
        NoRoomError
            If the buffer is full.
        """
        size, needed = len(self._memory), -(-tensor.nbytes // _ALIGNED) * _ALIGNED
        with self._lock:
            begin = self._end
            if begin % size + needed > size:
                begin += size - begin % size  # does not fit before the end: begin at 0
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
        """Copy everything in the buffer to the host, and wait until it has arrived."""
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
    """Start copying a tensor to the host without waiting. Do not write to the tensor afterwards.

    Raises
    ------
    NoRoomError
        If the ring buffer of the tensor's device is full.
    """
    tensor = tensor.detach()
    if tensor.device.type == "cpu":
        return Parcel(tensor)
    if tensor.device.type != "cuda" or tensor.nbytes > RING // 4:
        return _send_pinned(tensor)
    with _rings_lock:
        ring = _rings.get(tensor.device)
        if ring is None:
            ring = _rings[tensor.device] = Ring(tensor.device)
    return ring.put(tensor)


def _send_pinned(tensor: Tensor) -> Parcel:
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
    pinned.copy_(tensor, non_blocking=True)
    arrival = torch.Event(tensor.device.type)
    arrival.record()
    return Parcel(pinned, arrival.synchronize)


def host_scalar(value: Any) -> float | Parcel:
    """Return a logged value as a float, or as a pending copy if it is on an accelerator.

    Raises
    ------
    ValueError, TypeError
        If the value is not one number.
    NoRoomError
        If the ring buffer of the value's device is full.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"a tensor of shape {tuple(value.shape)}")
        value = value.detach()
        if value.device.type != "cpu":
            return send(value.reshape(()).double())
    return float(value)


def opened_scalar(value: float | Parcel) -> float:
    """Return the float of a value from :func:`host_scalar`; wait for the copy if it is pending."""
    return float(np.asarray(value.open())) if isinstance(value, Parcel) else value
