"""Tensor conversions used by both the optimizers and the recorder."""

from __future__ import annotations

import torch
from torch import Tensor


def upcast_half(tensors: list[Tensor]) -> list[Tensor]:
    """Convert half-precision tensors to float32; return the others unchanged, without a copy."""
    return [t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors]
