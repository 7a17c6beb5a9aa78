"""Helpers to launch Triton kernels: uploads, launch options, and a synchronizing check."""

from __future__ import annotations

import contextlib
import os
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

OPTIONS: Final[dict[str, Any]] = {
    "num_warps": 8,
    # Products are rounded before they are added, so that opposite terms cancel exactly.
    "enable_fp_fusion": False,
    # With this limit of registers, two programs fit on a multiprocessor: one can compute while the
    # other loads.
    **({} if torch.version.hip else {"maxnreg": 128}),
}
"""Compile options of the Triton kernels."""


def upload(values: NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to a device, without waiting for the device; return the tensor there."""
    host = torch.from_numpy(np.array(values))  # a copy, since arrays may be read-only
    if device.type == "cpu":
        return host
    # torch reuses pinned memory only after the copy from it has finished.
    return host.pin_memory().to(device, non_blocking=True)


def next_power_of_two(columns: int) -> int:
    """Return the smallest power of two that is at least ``columns``: a size for Triton blocks."""
    return 1 << (columns - 1).bit_length()


def is_interpreted() -> bool:
    """Return whether Triton runs kernels in its interpreter, which uses tensors on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def current_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which ``device`` is the current GPU; no effect if it is the CPU."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def all_true(values: Tensor) -> bool:
    """Return whether all elements of a bool tensor are True; waits for the tensor's device."""
    pinned = values.device.type == "cuda"
    host = torch.empty(values.shape, dtype=torch.bool, device="cpu", pin_memory=pinned)
    host.copy_(values, non_blocking=True)
    if pinned:  # torch.cuda.set_sync_debug_mode permits waiting for an event
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(values.device))
        event.synchronize()
    return bool(host.all())
