"""Element histograms: exact counts over the scale-free buckets of `trustlens.bins`."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

BUCKETS: Final = 2048
_SHIFT: Final = 21


def count_elements(values: Tensor) -> Tensor:
    """Return how many elements lie in each bucket, int64 of shape (2048,), on their device.

    The bucket is made of the float32's sign, exponent and first two mantissa bits. Elements of
    another dtype are cast to float32 first.
    """
    bits = values.detach().reshape(-1).float().contiguous().view(torch.int32)
    buckets = (bits >> _SHIFT).bitwise_and_(BUCKETS - 1).long()
    counts = torch.zeros(BUCKETS, dtype=torch.int64, device=values.device)
    # Not bincount: on CUDA it waits for the largest value.
    return counts.scatter_add_(0, buckets, torch.ones_like(buckets))
