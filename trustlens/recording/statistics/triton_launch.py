"""Upload tables that describe the layers to a GPU, and launch ``triton_kernels.py``'s kernels."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trustlens.kernels.device import OPTIONS, current_device, next_power_of_two, upload
from trustlens.kernels.sums import SUMS
from trustlens.recording.optimizers import Direction
from trustlens.recording.statistics.layer_step import coefficients_of

CHUNK: Final = 1 << 15
"""Elements that one program sums: so many that its fixed cost does not matter."""

BLOCK: Final = 1 << 10
"""Elements that a program processes at a time.

In each lane, a program then adds CHUNK / BLOCK = 32 values in float32.
"""

_ROWS: Final = 64  # rows of the scratch array that `add_chunks` loads at a time

ALIGNMENT: Final = 16  # a vectorized load reads this number of bytes

_NO_NUMBERS: Final = (0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0)


class KernelKind(NamedTuple):
    """What the layers of one launch have in common: constants for which a kernel is compiled."""

    dtypes: tuple[torch.dtype | None, ...]  # after, before, gradient, x, v, m; None: missing
    base_is_momentum: bool
    aligned: bool  # whether all addresses are multiples of 16, except for those of gradients


class PackedLayer(NamedTuple):
    """A layer in the form that the kernels read."""

    kind: KernelKind | None  # None if the kernels cannot read the layer
    addresses: tuple[int, ...]  # addresses of after, before, x, v and m; 0 for a missing tensor
    size: int  # number of elements
    has: int  # HAS_ bits of triton_kernels.py
    grad: int = 0  # address of the gradient; 0 for none


class _Group(NamedTuple):
    """All layers of one kind: one launch of ``measure_chunks`` measures them."""

    kinds: tuple[Any, ...]  # the kernel's constant `KINDS`, without the last flag
    wide: bool  # whether to sum in float64
    first: int  # index of the first chunk
    chunks: int  # number of chunks


class PreparedGpuLayers:
    """Layers whose tables are on the GPU, so that they can be measured in each step.

    The layers' tensors, except for the gradients, must keep their addresses between steps.

    Parameters
    ----------
    kernels : module
        The module ``triton_kernels``.
    layers : sequence
        The layers. Those with ``kind`` None are not measured.
    device : torch.device
        The device of the layers.
    """

    def __init__(self, kernels: Any, layers: Sequence[PackedLayer], device: torch.device) -> None:
        self._kernels = kernels
        self._device = device
        self._count = len(layers)
        fields, chunks, self._groups = _layout(kernels, layers)
        self._layers, self._chunks = upload(fields, device), upload(chunks, device)
        self._changing = torch.empty(0, dtype=torch.int64, device=device)
        self._sent = b""
        self._gathered = b"", self._changing
        self._grads_aligned = False

    def measure(
        self,
        grads: Sequence[int] | NDArray[np.int64],
        forms: Sequence[Direction],
        form_of: Sequence[int] | NDArray[np.int64],
        counts: Tensor | None = None,
    ) -> Tensor:
        """Return the sums of each layer in this step, float64 of shape (layers, len(SUMS)).

        Parameters
        ----------
        grads : sequence of int
            Addresses of the gradients; 0 if a layer has none. Each gradient is contiguous and has
            the dtype in the layer's ``kind``. This is the dtype of the gradient when the layer was
            packed. If there was no gradient then, it is the dtype of the weights.
        forms : sequence of Direction
            The layers' directions, without duplicates. Only their coefficients are read, not their
            tensors. A coefficient may be a tensor on the device. It has no dimensions, or the shape
            (n,) with one value for each of the n layers that have this direction, in their order.
        form_of : sequence of int
            Index of each layer's direction in ``forms``; -1 if the direction is unknown.
        counts : Tensor, optional
            Element histograms, int64 of shape (layers, 3, buckets). The counts of this step are
            added to them. None: count nothing.
        """
        float64: dict[str, Any] = {"dtype": torch.float64, "device": self._device}
        sums = torch.empty((self._count, len(SUMS)), **float64)
        coefficients = self._send(grads, forms, form_of)
        scratch = torch.empty((len(self._chunks), len(SUMS)), **float64)
        with current_device(self._device):
            for group in self._groups:
                self._launch(group, coefficients, scratch, counts)
            self._kernels.add_chunks[(self._count,)](
                *(self._layers, self._changing, scratch, sums, self._count),
                PADDED=next_power_of_two(len(SUMS)),
                ROWS=_ROWS,
                **OPTIONS,
            )
        return sums

    def _launch(self, group: _Group, forms: Tensor, scratch: Tensor, counts: Tensor | None) -> None:
        self._kernels.measure_chunks[(group.chunks,)](
            self._layers,
            self._changing,
            forms,
            self._chunks,
            scratch,
            self._changing if counts is None else counts,
            group.first,
            self._count,
            KINDS=(*group.kinds, self._grads_aligned),
            WIDE=group.wide,
            COUNT=counts is not None,
            CHUNK=CHUNK,
            BLOCK=BLOCK,
            **OPTIONS,
        )

    def _send(
        self,
        grads: Sequence[int] | NDArray[np.int64],
        forms: Sequence[Direction],
        form_of: Sequence[int] | NDArray[np.int64],
    ) -> Tensor:
        """Upload the gradients' addresses and the coefficients; return the uploaded coefficients.

        There is one upload, or none if nothing changed since the last step.
        """
        values, places, tensors, row_of = _coefficient_table(forms, np.asarray(form_of, np.int64))
        packed = b"".join(
            (_packed_ints(grads), row_of.tobytes(), array("d", values), _packed_ints(places))
        )
        if packed != self._sent:
            changing = np.frombuffer(packed, np.int64)
            self._changing, self._sent = upload(changing, self._device), packed
            self._grads_aligned = not (changing[: self._count] % ALIGNMENT).any()
        start, end = 2 * self._count, 2 * self._count + len(values)
        coefficients = self._changing[start:end].view(torch.float64)
        if tensors:  # insert the coefficients that are tensors on the device
            coefficients.index_copy_(0, self._changing[end:], torch.cat(tensors).double())
        return coefficients

    def gather(self, places: NDArray[np.int64]) -> Tensor:
        """Return the float32 numbers at the addresses ``places`` in the device's memory.

        ``places`` and the result have the same shape (n,).
        """
        packed = places.tobytes()
        if packed != self._gathered[0]:
            self._gathered = packed, upload(places, self._device)
        numbers = torch.empty(len(places), dtype=torch.float32, device=self._device)
        with current_device(self._device):
            self._kernels.gather[(-(-len(places) // BLOCK),)](
                self._gathered[1], numbers, len(places), BLOCK=BLOCK
            )
        return numbers


def _coefficient_table(
    forms: Sequence[Direction], form_of: NDArray[np.int64]
) -> tuple[list[float], list[int], list[Tensor], NDArray[np.int64]]:
    """Return the table of the directions' coefficients, and the row of each layer in the table.

    A direction has one row, or one for each of its layers if a coefficient differs between them.

    Returns
    -------
    values : list of float
        The table, row by row; 0 for coefficients that are on the device.
    places : list of int
        Positions in ``values`` of the coefficients that are on the device.
    tensors : list of Tensor
        The values for these positions, in order.
    row_of : int64 (layers,)
        Row of each layer; -1 if its direction is unknown.
    """
    values: list[float] = []
    places: list[int] = []
    tensors: list[Tensor] = []
    first_row_of: list[int] = []
    with_rows_per_layer: list[tuple[int, int]] = []
    for i, form in enumerate(forms):
        row = coefficients_of(form)
        first, n = len(values), max((v.numel() for v in row if isinstance(v, Tensor)), default=1)
        first_row_of.append(first // len(row))
        with_rows_per_layer += [(i, n)] if n > 1 else []
        values += n * [0.0 if isinstance(value, Tensor) else value for value in row]
        for column, value in enumerate(row):
            if isinstance(value, Tensor):
                places += range(first + column, len(values), len(row))
                tensors.append(value.detach().reshape(-1).expand(n))
    row_of = np.array([*first_row_of, -1], np.int64)[form_of]
    for i, n in with_rows_per_layer:
        row_of[form_of == i] = first_row_of[i] + np.arange(n)
    return values or list(_NO_NUMBERS), places, tensors, row_of


def _layout(
    kernels: Any, layers: Sequence[PackedLayer]
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[_Group]]:
    """Return the table of layers, the table of chunks, and the groups.

    The chunks of a group are adjacent in the table of chunks, so that one launch measures them.
    """
    from trustlens.kernels.triton_elements import dtype_of  # noqa: PLC0415 — may be missing

    by_kind: dict[KernelKind, list[int]] = {}
    for i, layer in enumerate(layers):
        if layer.kind is not None and layer.size:
            by_kind.setdefault(layer.kind, []).append(i)
    fields = np.zeros((len(layers), kernels.FIELDS.value), np.int64)
    for i, layer in enumerate(layers):
        fields[i] = (*layer.addresses, layer.size, 0, 0, layer.has)
    owners: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    groups: list[_Group] = []
    total = 0
    for kind, members in by_kind.items():
        first = total
        for i in members:
            chunks = -(-layers[i].size // CHUNK)
            fields[i, 6:8] = total, chunks
            owners.append(np.full(chunks, i))
            total += chunks
        dtypes = [dtype_of(dtype) for dtype in kind.dtypes]
        kinds = (*dtypes, kind.base_is_momentum, kind.aligned)
        groups.append(_Group(kinds, torch.float64 in kind.dtypes, first, total - first))
    owner = np.concatenate(owners)
    chunk = np.stack([owner, np.arange(total) - fields[owner, 6]], axis=1)
    return fields, chunk, groups


def _packed_ints(values: Sequence[int] | NDArray[np.int64]) -> bytes:
    return np.asarray(values, np.int64).tobytes()
