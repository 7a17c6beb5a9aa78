"""The device that kernels are checked on: a GPU, or the CPU, on which they are interpreted."""

from __future__ import annotations

import contextlib
import os

import torch

DEVICE = torch.device(os.environ.get("TRUSTLENS_CHECKED_DEVICE", "cpu"))


@contextlib.contextmanager
def no_waiting():
    """On a GPU, whatever waits for it raises."""
    if DEVICE.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
