"""What computes the sums: the protocol of the backends, and the choice of one for a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trustlens.recording.optimizers import Direction
from trustlens.recording.statistics.cpu_backend import CpuBackend
from trustlens.recording.statistics.layer_step import LayerStep
from trustlens.recording.statistics.torch_backend import TorchBackend
from trustlens.recording.statistics.triton_backend import TritonBackend


class Backend(Protocol):
    """Computes the sums of layers that are on one device, without synchronizing with it."""

    name: ClassVar[str]
    """Its name in ``run.json``."""

    def measure(self, steps: Sequence[LayerStep]) -> Tensor:
        """Return the sums of each layer, float64 of shape (layers, len(SUMS)), on their device.

        NaN where a sum does not exist; float32 on devices without float64.
        """
        ...

    def measure_and_count(self, steps: Sequence[LayerStep]) -> tuple[Tensor, Tensor]:
        """Return the sums, and element histograms: int64 of shape (layers, 3, buckets)."""
        ...


class PreparedLayers(Protocol):
    """Layers whose tensors stay where they are, except for the gradients."""

    def measure(
        self,
        grads: NDArray[np.int64],
        forms: Sequence[Direction],
        form_of: NDArray[np.int64],
        counts: Tensor | None = None,
    ) -> Tensor:
        """Return the sums of each layer, as :meth:`Backend.measure`.

        Parameters
        ----------
        grads : int64 (layers,)
            Addresses of the gradients, contiguous and of the dtype at preparation; 0 for none.
        forms : sequence of Direction
            Directions, of which only the numbers are read.
        form_of : int64 (layers,)
            The index of each layer's direction in ``forms``; -1 where none is known.
        counts : Tensor, optional
            Element histograms that this step's are added to, int64 of shape (layers, 3, buckets).
        """
        ...


class PreparingBackend(Backend, Protocol):
    """A backend that can look at layers once and measure them again in later steps."""

    def prepare(self, steps: Sequence[LayerStep]) -> PreparedLayers | None:
        """Return the layers prepared; None if some cannot be read as they are in memory."""
        ...


def backend_for(device: torch.device) -> PreparingBackend | TorchBackend:
    """Return the fastest backend that works for tensors of a device.

    The first call for a device may compile its backend and try it out.
    """
    found: PreparingBackend | None = None
    if device.type == "cpu":
        found = CpuBackend.if_possible()
    elif device.type == "cuda":
        found = TritonBackend.if_possible(device)
    return found or TorchBackend()
