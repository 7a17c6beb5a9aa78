"""Conversions of tensors that the optimizers and the recorder share."""

from __future__ import annotations

import torch
from torch import Tensor


def upcast_half(tensors: list[Tensor]) -> list[Tensor]:
    """Return half-precision tensors as float32, and others unchanged (not copied)."""
    return [t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors]
