"""The sums on the CPU, by a compiled loop that reads each tensor once and needs no temporaries.

The loop is in ``cpu.c``; :mod:`trustlens.kernels.build` builds it. If this fails, or if the loop
computes wrong sums, :meth:`CpuBackend.if_possible` returns None, and PyTorch operations are used
instead.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import logging
import operator
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trustlens.element_bins import ELEMENT_BUCKETS
from trustlens.kernels.build import load
from trustlens.kernels.sums import SUMS
from trustlens.recording.optimizers import Direction
from trustlens.recording.statistics.elements import count_steps
from trustlens.recording.statistics.layer_step import LayerStep, coefficients_of
from trustlens.recording.statistics.reference import measure as measure_by_reference
from trustlens.recording.statistics.torch_backend import TorchBackend
from trustlens.schema import ELEMENTS

_log: Final = logging.getLogger("trustlens")

_SOURCE: Final = Path(__file__).with_name("cpu.c")

_DTYPES: Final = {torch.float32: 1, torch.float64: 2, torch.bfloat16: 3, torch.float16: 4}
_TENSORS: Final = ("after", "before", "grad", "base", "variance", "momentum")
_GRAD: Final = _TENSORS.index("grad")
_LAYER: Final = np.dtype(  # struct `Layer` of cpu.c
    [
        ("data", np.int64, len(_TENSORS)),
        ("dtype", np.int32, len(_TENSORS)),
        ("size", np.int64),
        ("form", np.int64),
    ]
)

_PARALLEL: Final = 1 << 17
"""Number of elements from which several threads are used.

They are the threads that PyTorch has already started.
"""


class CpuBackend:
    """Computes the sums on the CPU with the compiled loop.

    For layers that the loop cannot read, it uses :class:`TorchBackend`.
    """

    name: ClassVar[str] = "cpu"

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._fallback = TorchBackend()

    @classmethod
    def if_possible(cls) -> CpuBackend | None:
        """Return the backend; None if the compiled loop cannot be built or computes wrong sums.

        The first call builds the loop.
        """
        library = _load()
        return None if library is None else cls(library)

    def measure(self, steps: Sequence[LayerStep]) -> Tensor:
        """Return the sums of each layer, float64 of shape (layers, len(SUMS)), on the CPU."""
        dense = [_dense(step) for step in steps]  # holds the copies until the loop has read them
        readable = [i for i, tensors in enumerate(dense) if tensors is not None]
        layers = np.zeros(len(readable), _LAYER)
        forms: list[Direction] = []
        for layer, i in zip(layers, readable, strict=True):
            _pack(layer, dense[i] or (), steps[i].after.numel())
            form = steps[i].direction
            layer["form"] = -1 if form is None else len(forms)
            forms += [] if form is None else [form]
        by_loop = self.run(layers, forms)
        if len(readable) == len(steps):
            return by_loop
        sums = torch.empty((len(steps), len(SUMS)), dtype=torch.float64, device="cpu")
        sums[readable] = by_loop
        for i in set(range(len(steps))).difference(readable):
            sums[i] = self._fallback.measure([steps[i]])[0]
        return sums

    def measure_and_count(self, steps: Sequence[LayerStep]) -> tuple[Tensor, Tensor]:
        """Return the sums, and the element histograms that :func:`count_steps` describes."""
        return self.measure(steps), self._count(steps)

    def _count(self, steps: Sequence[LayerStep]) -> Tensor:
        counts = torch.zeros(
            (len(steps), len(ELEMENTS), ELEMENT_BUCKETS), dtype=torch.int64, device="cpu"
        )
        for counted, step in zip(counts, steps, strict=True):
            tensors = _dense(LayerStep(step.before, step.after, step.grad, None))
            if tensors is None:
                counted.copy_(count_steps([step])[0])
                continue
            layer = np.zeros(1, _LAYER)
            _pack(layer[0], tensors, step.after.numel())
            self.count_at(layer.ctypes.data, 1, step.after.numel(), counted)
        return counts

    def count_at(self, layers: int, count: int, elements: int, counts: Tensor) -> None:
        """Add the element histograms of ``count`` layers to ``counts``.

        The layers are an array of struct ``Layer`` at address ``layers``. Together they have
        ``elements`` elements.
        """
        threads = _threads(elements)
        if not self._library.trustlens_count(layers, count, threads, counts.data_ptr()):
            raise MemoryError("not enough memory for the element histograms")

    def prepare(self, steps: Sequence[LayerStep]) -> PreparedCpuLayers | None:
        """Return the prepared layers; None if the loop cannot read a layer without a copy."""
        layers = np.zeros(len(steps), _LAYER)
        for layer, step in zip(layers, steps, strict=True):
            tensors = _dense(step)
            if tensors is None or any(map(operator.is_not, tensors, _tensors(step))):
                return None
            _pack(layer, tensors, step.after.numel())
        return PreparedCpuLayers(self, layers)

    def run(self, layers: NDArray[Any], forms: Sequence[Direction]) -> Tensor:
        """Return the sums of an array of struct ``Layer``, float64 of shape (layers, len(SUMS)).

        The array holds only addresses, so the caller must keep the tensors alive during the call.
        """
        return self.run_at(layers.ctypes.data, len(layers), int(layers["size"].sum()), forms)

    def run_at(self, layers: int, count: int, elements: int, forms: Sequence[Direction]) -> Tensor:
        """Return the sums of ``count`` layers, float64 of shape (count, len(SUMS)).

        The layers are an array of struct ``Layer`` at address ``layers``. Together they have
        ``elements`` elements.
        """
        sums = torch.empty((count, len(SUMS)), dtype=torch.float64, device="cpu")
        numbers = array("d", itertools.chain.from_iterable(map(coefficients_of, forms)))
        done = self._library.trustlens_measure(
            layers, count, numbers.buffer_info()[0], _threads(elements), sums.data_ptr()
        )
        if not done:
            raise MemoryError("not enough memory for the sums of the layers")
        return sums


class PreparedCpuLayers:
    """Layers that :meth:`CpuBackend.prepare` has prepared, to be measured in later steps.

    Their tensors, except for the gradients, must keep their addresses between steps.
    """

    def __init__(self, backend: CpuBackend, layers: NDArray[Any]) -> None:
        self._backend = backend
        self._layers = layers
        self._grads, self._form_of = layers["data"][:, _GRAD], layers["form"]
        self._packed = layers.ctypes.data, len(layers), int(layers["size"].sum())

    def measure(
        self,
        grads: NDArray[np.int64],
        forms: Sequence[Direction],
        form_of: NDArray[np.int64],
        counts: Tensor | None = None,
    ) -> Tensor:
        """Return the sums of each layer, float64; see :meth:`PreparedLayers.measure`."""
        self._grads[:] = grads
        self._form_of[:] = form_of
        if counts is not None:
            self._backend.count_at(*self._packed, counts)
        return self._backend.run_at(*self._packed, forms)


def gather(places: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the float32 numbers at the addresses ``places`` in the CPU's memory.

    ``places`` and the result have the same shape (n,).
    """
    library = _load()
    if library is None:
        return np.array([ctypes.c_float.from_address(int(at)).value for at in places], np.float32)
    numbers = np.empty(len(places), np.float32)
    library.trustlens_gather(places.ctypes.data, len(places), numbers.ctypes.data)
    return numbers


def _threads(elements: int) -> int:
    return torch.get_num_threads() if elements >= _PARALLEL else 1


def _tensors(step: LayerStep) -> tuple[Tensor | None, ...]:
    form = step.direction
    of_form = (None, None, None) if form is None else (form.base, form.variance, form.momentum)
    return (step.after, step.before, step.grad, *of_form)


def _dense(step: LayerStep) -> tuple[Tensor | None, ...] | None:
    """Return a layer's tensors, made contiguous; None if the loop cannot read this layer.

    The loop reads only tensors on the CPU with a dtype in ``_DTYPES``, and no coefficients on an
    accelerator.
    """
    if step.direction is not None and not is_on_host(step.direction):
        return None
    tensors = _tensors(step)
    if any(t is not None and (t.dtype not in _DTYPES or not t.is_cpu) for t in tensors):
        return None
    # The loop pairs elements by their position in memory, so tensors must have the same order.
    return tuple(None if t is None else t.contiguous() for t in tensors)


def _pack(layer: Any, tensors: Sequence[Tensor | None], size: int) -> None:
    layer["data"] = [0 if t is None else t.data_ptr() for t in tensors]
    layer["dtype"] = [0 if t is None else _DTYPES[t.dtype] for t in tensors]
    layer["size"] = size


def is_on_host(form: Direction) -> bool:
    """Return whether all coefficients of a direction are floats, not tensors on an accelerator."""
    return not any(isinstance(number, Tensor) for number in coefficients_of(form))


@functools.cache
def _load() -> ctypes.CDLL | None:
    try:
        library = load(_SOURCE)
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        library.trustlens_measure.argtypes = (pointer, size, pointer, ctypes.c_int, pointer)
        library.trustlens_count.argtypes = (pointer, size, ctypes.c_int, pointer)
        library.trustlens_gather.argtypes = (pointer, size, pointer)
        library.trustlens_gather.restype = None
        _check(CpuBackend(library))
    except Exception as error:  # noqa: BLE001 — PyTorch operations replace the loop
        _log.info(
            "trustlens: PyTorch computes the sums, not the C loop (%s: %s)",
            type(error).__name__,
            error,
        )
        return None
    return library


def _check(backend: CpuBackend) -> None:
    """Raise ArithmeticError if the backend's sums differ from the reference."""
    steps: list[LayerStep] = []
    for size in (3, 5000):  # no random tensors: drawing them would change the training
        w = torch.linspace(-1, 2, size, dtype=torch.float32, device="cpu")
        g, v = w.cos(), w.square()
        for before in (None, 1.001 * w):
            form = Direction(
                rate=0.01, base=g, base_share=2.0, variance=v, epsilon=1e-3, momentum=g, decay=0.1
            )
            steps.append(LayerStep(before, w, g, form))
        steps.append(LayerStep(w, w, None, None))
    if not torch.allclose(
        backend.measure(steps), measure_by_reference(steps), rtol=1e-5, atol=0, equal_nan=True
    ):
        raise ArithmeticError("the compiled sums differ from the reference")
