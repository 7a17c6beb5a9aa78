"""Element histograms: exact counts in the buckets of `trustlens.element_bins`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from trustlens.element_bins import ELEMENT_BUCKETS, ELEMENT_SHIFT
from trustlens.recording.statistics.layer_step import LayerStep

_CHUNK: Final = 1 << 20


def count_elements(values: Tensor) -> Tensor:
    """Count the elements of a tensor in each bucket.

    Return int64 counts of shape (buckets,) on the tensor's device. Elements are cast to float32
    before they are counted.
    """
    counts = torch.zeros(ELEMENT_BUCKETS, dtype=torch.int64, device=values.device)
    # In chunks: the int64 bucket indices take several times the memory of the elements.
    for chunk in values.detach().reshape(-1).split(_CHUNK):
        bits = chunk.float().contiguous().view(torch.int32)
        buckets = (bits >> ELEMENT_SHIFT).bitwise_and_(ELEMENT_BUCKETS - 1).long()
        # Not torch.bincount: on CUDA it synchronizes to find the largest value.
        counts.scatter_add_(0, buckets, torch.ones_like(buckets))
    return counts


def count_steps(steps: Sequence[LayerStep]) -> Tensor:
    """Return three histograms for each layer: weights before the step, gradient and update.

    The result is int64 of shape (layers, 3, buckets). The counts of a missing gradient are 0. If a
    layer has no copy of the weights before the step, the weights after it are counted instead, and
    every element of the update counts as 0.
    """
    rows: list[Tensor] = []
    for step in steps:
        before = step.after if step.before is None else step.before
        nothing = step.after.new_empty(0)
        counts = (
            count_elements(before),
            count_elements(nothing if step.grad is None else step.grad),
            count_elements(step.after.float() - before.float()),
        )
        rows.append(torch.stack(counts))
    return torch.stack(rows)
