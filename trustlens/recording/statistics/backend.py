"""The protocols of the backends, which compute the sums, and the choice of a backend by device."""

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
    """Computes the sums of layers that are all on one device.

    The recorder calls a backend after each step. In this call, the CPU does not wait for the
    device.
    """

    name: ClassVar[str]
    """The backend's name in ``run.json``."""

    def measure(self, steps: Sequence[LayerStep]) -> Tensor:
        """Return the sums of each layer as a float64 tensor of shape (layers, len(SUMS)).

        A sum is NaN if the layer lacks a tensor that the sum needs, such as the gradient. The
        result is on the device of the layers. It is float32 if this device does not support
        float64.
        """
        ...

    def measure_and_count(self, steps: Sequence[LayerStep]) -> tuple[Tensor, Tensor]:
        """Return the sums, and the element histograms: int64 of shape (layers, 3, buckets).

        The three histograms are those of the weights before the step, the gradient and the update.
        """
        ...


class PreparedLayers(Protocol):
    """Layers that a backend has prepared, so that their sums in later steps are computed fast.

    The tensors of these layers, except for the gradients, must keep their addresses between steps.
    """

    def measure(
        self,
        grads: NDArray[np.int64],
        forms: Sequence[Direction],
        form_of: NDArray[np.int64],
        counts: Tensor | None = None,
    ) -> Tensor:
        """Return the sums of each layer in this step, as :meth:`Backend.measure` returns them.

        Parameters
        ----------
        grads : int64 (layers,)
            Addresses of the gradients; 0 if a layer has none. Each gradient is contiguous and has
            the dtype that it had when :meth:`PreparingBackend.prepare` was called.
        forms : sequence of Direction
            The layers' directions, without duplicates. Only their coefficients are read, not their
            tensors.
        form_of : int64 (layers,)
            Index of each layer's direction in ``forms``; -1 if the direction is unknown.
        counts : Tensor, optional
            Element histograms, int64 of shape (layers, 3, buckets). The counts of this step are
            added to them. None: count nothing.
        """
        ...


class PreparingBackend(Backend, Protocol):
    """A backend that can prepare layers once and measure them in each later step."""

    def prepare(self, steps: Sequence[LayerStep]) -> PreparedLayers | None:
        """Return the prepared layers; None if the backend cannot read a layer without a copy."""
        ...


def backend_for(device: torch.device) -> PreparingBackend | TorchBackend:
    """Return the fastest backend that works for tensors on a device.

    The first call for a device may compile the backend and compare its sums with the reference.
    """
    found: PreparingBackend | None = None
    if device.type == "cpu":
        found = CpuBackend.if_possible()
    elif device.type == "cuda":
        found = TritonBackend.if_possible(device)
    return found or TorchBackend()
