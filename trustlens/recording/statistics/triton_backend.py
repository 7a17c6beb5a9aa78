"""The sums on a GPU, computed by the Triton kernels in ``triton_kernels.py``.

One launch measures all layers whose tensors have the same dtypes and alignment. The CPU does not
wait for the GPU. Triton is installed with PyTorch's GPU builds. If it is missing, or the kernels
compute wrong sums, :meth:`TritonBackend.if_possible` returns None, and PyTorch operations are used
instead.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from trustlens.element_bins import ELEMENT_BUCKETS
from trustlens.kernels.device import all_true, is_interpreted
from trustlens.recording.optimizers import Direction
from trustlens.recording.statistics.elements import count_steps
from trustlens.recording.statistics.layer_step import LayerStep
from trustlens.recording.statistics.reference import measure as measure_by_reference
from trustlens.recording.statistics.torch_backend import TorchBackend
from trustlens.recording.statistics.triton_launch import (
    ALIGNMENT,
    KernelKind,
    PackedLayer,
    PreparedGpuLayers,
)
from trustlens.schema import ELEMENTS

_log: Final = logging.getLogger("trustlens")

_DTYPES: Final = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_UNREADABLE: Final = PackedLayer(None, (0, 0, 0, 0, 0), 0, 0)


class TritonBackend:
    """Computes the sums on one GPU with the Triton kernels.

    For layers that the kernels cannot read, it uses :class:`TorchBackend`.
    """

    name: ClassVar[str] = "cuda"

    def __init__(self, kernels: Any) -> None:
        self._kernels = kernels
        self._fallback = TorchBackend()
        self._prepared: tuple[Any, PreparedGpuLayers] | None = None

    @classmethod
    def if_possible(cls, device: torch.device | None = None) -> TritonBackend | None:
        """Return the backend for a GPU, by default the current one; None if it does not work there.

        The first call for a device compiles the kernels, checks their sums, and waits for the
        device.
        """
        if device is None:
            device = _default_device()
        kernels = None if device is None else _load(device)
        return None if kernels is None else cls(kernels)

    def measure(self, steps: Sequence[LayerStep]) -> Tensor:
        """Return the sums of each layer, float64 of shape (layers, len(SUMS)).

        All layers are on one device, and so is the result.
        """
        return self._measure(steps, None)

    def measure_and_count(self, steps: Sequence[LayerStep]) -> tuple[Tensor, Tensor]:
        """Return the sums, and the element histograms that :func:`count_steps` describes.

        Both are computed in the same pass over the tensors.
        """
        shape, device = (len(steps), len(ELEMENTS), ELEMENT_BUCKETS), steps[0].after.device
        counts = torch.zeros(shape, dtype=torch.int64, device=device)
        return self._measure(steps, counts), counts

    def _measure(self, steps: Sequence[LayerStep], counts: Tensor | None) -> Tensor:
        device = steps[0].after.device
        kept: list[Tensor] = []  # holds the copies until the kernels are launched
        layers = [_packed(step, kept) for step in steps]
        key = [layer[:-1] for layer in layers]
        if self._prepared is None or self._prepared[0] != (device, key):
            self._prepared = ((device, key), PreparedGpuLayers(self._kernels, layers, device))
        grads = [layer.grad for layer in layers]
        sums = self._prepared[1].measure(grads, *_forms(steps), counts=counts)
        for i, layer in enumerate(layers):
            if layer.kind is None:
                sums[i] = self._fallback.measure([steps[i]])[0]
                if counts is not None:
                    counts[i] = count_steps([steps[i]])[0]
        return sums

    def prepare(self, steps: Sequence[LayerStep]) -> PreparedGpuLayers | None:
        """Prepare layers whose tensors, except for the gradients, will keep their addresses.

        Return None if the dtype or device of a tensor is not suitable for the kernels, or if a
        tensor is not contiguous.
        """
        kept: list[Tensor] = []
        layers = [_packed(step, kept) for step in steps]
        there = {id(tensor) for step in steps for tensor in _tensors(step)}
        if any(layer.kind is None for layer in layers) or {id(tensor) for tensor in kept} - there:
            return None
        return PreparedGpuLayers(self._kernels, layers, steps[0].after.device)


def _tensors(step: LayerStep) -> tuple[Tensor | None, ...]:
    """Return the tensors that the kernels read, in the order of `KernelKind.dtypes`."""
    form = step.direction
    of_form = (None, None, None) if form is None else (form.base, form.variance, form.momentum)
    return (step.after, step.before, step.grad, *of_form)


def _packed(step: LayerStep, kept: list[Tensor]) -> PackedLayer:
    """Return a layer in the form that the kernels read; `_UNREADABLE` if they cannot read it.

    The layer's tensors, or contiguous copies of them, are appended to the list ``kept``. The
    addresses in the result are valid only while these tensors exist.
    """
    addresses: list[int] = []
    dtypes: list[torch.dtype | None] = []
    for tensor in _tensors(step):
        if tensor is None:
            addresses.append(0)
            dtypes.append(None)
            continue
        if tensor.dtype not in _DTYPES or tensor.device != step.after.device:
            return _UNREADABLE
        # The kernels pair elements by their position in memory, so all must have the same order.
        dense = tensor if tensor.is_contiguous() else tensor.contiguous()
        kept.append(dense)
        addresses.append(dense.data_ptr())
        dtypes.append(dense.dtype)
    after, before, grad, *of_form = addresses
    has = (step.grad is not None) | (bool(dtypes[5]) << 1) | (bool(dtypes[4]) << 2)
    dtypes[2] = dtypes[2] or dtypes[0]  # a later step may have a gradient
    same = dtypes[5] is not None and (of_form[0], dtypes[3]) == (of_form[2], dtypes[5])
    aligned = not any(address % ALIGNMENT for address in (after, before, *of_form))
    kind = KernelKind(tuple(dtypes), same, aligned)
    return PackedLayer(kind, (after, before, *of_form), step.after.numel(), has, grad)


def _forms(steps: Sequence[LayerStep]) -> tuple[list[Direction], list[int]]:
    """Return the directions without duplicates, and the index of each layer's direction in them.

    The index is -1 for a layer whose direction is unknown.
    """
    indices: dict[tuple[Any, ...], int] = {}
    forms: list[Direction] = []
    form_of: list[int] = []
    for step in steps:
        form = step.direction
        if form is None:
            form_of.append(-1)
            continue
        given = (
            form.rate, form.grad_share, form.base_share, form.weight_share, form.update_share,
            form.variance_share, form.epsilon, form.decay, form.kept, form.divides,
        )  # fmt: skip
        # Tensors are compared by identity: reading a value would synchronize.
        key = tuple((id(value),) if isinstance(value, Tensor) else value for value in given)
        index = indices.setdefault(key, len(forms))
        if index == len(forms):
            forms.append(form)
        form_of.append(index)
    return forms, form_of


def _default_device() -> torch.device | None:
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu") if is_interpreted() else None


@functools.cache
def _load(device: torch.device) -> Any:
    try:
        from trustlens.recording.statistics import triton_kernels  # noqa: PLC0415 — may be missing

        _check(TritonBackend(triton_kernels), device)
    except Exception as error:  # noqa: BLE001 — PyTorch operations replace the kernels
        _log.info(
            "trustlens: PyTorch computes the sums, not Triton (%s: %s)", type(error).__name__, error
        )
        return None
    return triton_kernels


def _check(backend: TritonBackend, device: torch.device) -> None:
    """Raise ArithmeticError if the backend's sums differ from the reference."""
    steps: list[LayerStep] = []
    for size in (3, 5000):  # no random tensors: drawing them would change the training
        w = torch.linspace(-1, 2, size, dtype=torch.float32, device=device)
        g, v = w.cos(), w.square()
        form = Direction(
            rate=0.01, base=g, base_share=2.0, variance=v, epsilon=1e-3, momentum=g, decay=0.1
        )
        # This is the most common kind of layer. Its kernel is compiled here, before the training.
        steps += [LayerStep(None, w, g, form), LayerStep(None, 1e25 * w, g, form)]
    got, truth = backend.measure(steps), measure_by_reference(steps)
    right = ((got - truth).abs() <= 1e-5 * truth.abs()) | (got.isnan() & truth.isnan())
    if not all_true(right):
        raise ArithmeticError("the kernels' sums differ from the reference")
