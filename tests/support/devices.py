"""The device for tests of Triton kernels: a GPU, or the CPU for Triton's interpreter."""

from __future__ import annotations

import contextlib
import os

import torch

DEVICE = torch.device(os.environ.get("TRUSTLENS_CHECKED_DEVICE", "cpu"))


@contextlib.contextmanager
def forbid_synchronization():
    """Make a synchronization with the GPU raise an error; do nothing on the CPU."""
    if DEVICE.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
