"""What is brought to a GPU, and waited for, by those who start kernels on it."""

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
    # Roundings as anywhere else: terms that cancel then do so exactly.
    "enable_fp_fusion": False,
    # So few registers that two programs go on a multiprocessor: one alone waits for its reads.
    **({} if torch.version.hip else {"maxnreg": 128}),
}
"""How a kernel that goes over elements is built."""


def brought(values: NDArray[Any], device: torch.device) -> Tensor:
    """Return an array on the device, without waiting."""
    host = torch.from_numpy(np.array(values))  # a copy: frombuffer's cannot be written
    if device.type == "cpu":
        return host
    # torch gives pinned memory to others only when a copy from it is over.
    return host.pin_memory().to(device, non_blocking=True)


def padded(columns: int) -> int:
    """Return the power of two that a kernel needs in place of a number of columns."""
    return 1 << (columns - 1).bit_length()


def is_interpreted() -> bool:
    """Tell whether Triton's kernels are interpreted, and so step and measure the CPU's tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Make a GPU the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def all_are(true: Tensor) -> bool:
    """Tell whether all elements of a tensor of bools are True, having waited for them."""
    pinned = true.device.type == "cuda"
    host = torch.empty(true.shape, dtype=torch.bool, device="cpu", pin_memory=pinned)
    host.copy_(true, non_blocking=True)
    if pinned:  # an event, which no debug mode of the user's forbids
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(true.device))
        event.synchronize()
    return bool(host.all())
