"""Fused steps of LAMB and LARS on a GPU: launch the kernels of ``triton_step.py``."""

# torch's foreach operations have private names only:
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.graph import increment_version

from trustlens.kernels.device import OPTIONS, all_true, current_device, next_power_of_two, upload
from trustlens.kernels.sums import SUMS
from trustlens.optim.foreach import to_float
from trustlens.optim.fused_cpu import LAMB, Options

_log: Final = logging.getLogger("trustlens")

CHUNK: Final = 1 << 15
"""Elements that one program steps: so many that its fixed cost does not matter."""

BLOCK: Final = 1 << 10
"""Elements that a program steps at a time.

In each lane, a program then adds CHUNK / BLOCK = 32 values in float32.
"""

_ROWS: Final = 64  # rows of the scratch tensor that `add_chunks` loads at a time
_LAYERS: Final = 128  # layers whose coefficients one program of `make_numbers` computes
_ALIGNMENT: Final = 16  # a vectorized load reads this number of bytes


class _Kind(NamedTuple):
    """The layers that one kernel launch processes: their ``dtype`` and ``aligned`` are equal."""

    dtype: Any  # a Triton dtype
    aligned: bool  # whether all addresses are multiples of 16, except for those of gradients
    first: int  # index of the first chunk
    chunks: int  # number of chunks


class Rows:
    """n parameters of one group that are stepped together on a GPU; each has a gradient.

    It has the interface of ``Rows`` in fused_cpu.py. In no method does the CPU wait for the GPU.
    """

    dtypes: Final = frozenset({torch.float32, torch.float16, torch.bfloat16})

    def __init__(self, params: list[Tensor], entries: Mapping[str, list[Tensor]]) -> None:
        from trustlens.optim import triton_numbers, triton_step  # noqa: PLC0415 — Triton may be missing

        self.params = params
        self._step_kernels: Any = triton_step
        self._number_kernels: Any = triton_numbers
        self._device = params[0].device
        self._steps = entries.get("step", [])
        self._has_momentum = "momentum_buffer" in entries
        fields, chunks, self._kinds = _build_tables(params, entries)
        self._layers, self._chunks = upload(fields, self._device), upload(chunks, self._device)
        self._grads, self._grads_on_device = [0], torch.empty(0)
        self._grads_aligned = False

    def set_gradients(self, grads: list[int]) -> None:
        """Set the addresses of the gradients for the next step."""
        if grads != self._grads:
            self._grads, self._grads_on_device = grads, upload(np.array(grads), self._device)
            self._grads_aligned = not any(address % _ALIGNMENT for address in grads)

    def grad_norms(self) -> Tensor:
        """Return the norms of the gradients, float64 of shape (n,)."""
        squares = self._scratch(2)
        with current_device(self._device):
            self._launch(
                self._step_kernels.square_gradients,
                *(self._layers, self._grads_on_device, self._chunks, squares),
            )
            return self._sum_chunks(squares)[:, 0].sqrt()

    def step(
        self,
        optimizer: int,
        options: Options,
        ratios: Callable[[Tensor, Tensor], Tensor],
        *,
        measures: bool,
    ) -> Tensor | None:
        """Step the n parameters; return the recorded sums if ``measures`` is True, else None.

        The sums are float64 of shape (n, len(SUMS)). The arguments are those of ``Rows.step`` in
        fused_cpu.py. The tensors that ``ratios`` takes and returns are on the device.
        """
        kernels = self._step_kernels
        lars = kernels.LARS if self._has_momentum else kernels.LARS_WITHOUT
        constants = {
            "RULE": kernels.LAMB if optimizer == LAMB else lars,
            "MEASURE": measures,
        }
        squares = self._scratch(2)
        sums = self._scratch(len(SUMS)) if measures else squares
        with current_device(self._device):
            given = (self._layers, self._grads_on_device, self._numbers(options), self._chunks)
            self._launch(kernels.first_pass, *given, squares, sums, **constants)
            weight_norms, direction_norms = self._sum_chunks(squares).sqrt_().unbind(1)
            applied = ratios(weight_norms, direction_norms).contiguous()
            self._launch(kernels.second_pass, *given, applied, sums, **constants)
            result = self._sum_chunks(sums) if measures else None
        increment_version(self.params)
        return result

    def _numbers(self, options: Options) -> Tensor:
        """Increment the step counts; return the coefficients of each layer's step.

        The coefficients are float32 of shape (n, columns), on the device. The columns are listed in
        triton_numbers.py.
        """
        if self._steps:
            torch._foreach_add_(self._steps, 1)
        values = (
            *(options.rate, options.beta1, options.beta2, options.epsilon, options.decay),
            options.divisor,
        )
        on_device = {i: v for i, v in enumerate(values) if isinstance(v, Tensor) and not v.is_cpu}
        on_host = [0.0 if i in on_device else to_float(v) for i, v in enumerate(values)]
        times = [step.item() for step in self._steps]  # on the CPU: does not synchronize
        given = upload(np.array(on_host + times, np.float64), self._device)
        for i, value in on_device.items():
            given[i].copy_(value.reshape(()), non_blocking=True)
        n = len(self.params)
        shape = (n, self._number_kernels.NUMBERS.value)
        numbers = torch.empty(shape, dtype=torch.float32, device=self._device)
        self._number_kernels.make_numbers[(-(-n // _LAYERS),)](
            given,
            numbers,
            n,
            DEBIAS=options.debias,
            DECAYS_INSIDE=options.decays_inside,
            RATIO_BEFORE_DECAY=options.ratio_before_decay,
            RATIO_OF_SUM=options.ratio_of_sum,
            BLOCK=_LAYERS,
            **OPTIONS,
        )
        return numbers

    def _launch(self, kernel: Any, *tensors: Tensor, **constants: Any) -> None:
        for kind in self._kinds:
            kernel[(kind.chunks,)](
                *tensors,
                kind.first,
                DTYPE=kind.dtype,
                ALIGNED=(kind.aligned, self._grads_aligned),
                CHUNK=CHUNK,
                BLOCK=BLOCK,
                **constants,
                **OPTIONS,
            )

    def _scratch(self, columns: int) -> Tensor:
        """Return an uninitialized float64 tensor with one row for each chunk."""
        shape = (len(self._chunks), columns)
        return torch.empty(shape, dtype=torch.float64, device=self._device)

    def _sum_chunks(self, scratch: Tensor) -> Tensor:
        """Add the rows of each layer's chunks; return the sums, shape (n, columns)."""
        n, columns = len(self.params), scratch.shape[1]
        sums = torch.empty((n, columns), dtype=torch.float64, device=self._device)
        self._step_kernels.add_chunks[(n,)](
            *(self._layers, scratch, sums),
            COLUMNS=columns,
            PADDED=next_power_of_two(columns),
            ROWS=_ROWS,
            **OPTIONS,
        )
        return sums


def _build_tables(
    params: list[Tensor], entries: Mapping[str, list[Tensor]]
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[_Kind]]:
    """Return the tables of layers and chunks that the kernels read, and the kinds of layers.

    Each row of the table of chunks has the index of the chunk's layer and the chunk's position in
    that layer. The chunks of a kind are adjacent, so that one launch steps them.
    """
    from trustlens.kernels.triton_elements import dtype_of  # noqa: PLC0415 — Triton may be missing

    none = [0] * len(params)
    places = [
        list(map(Tensor.data_ptr, entries[name])) if name in entries else none
        for name in ("exp_avg", "momentum_buffer", "exp_avg_sq", "trust_ratio")
    ]
    fields = np.zeros((len(params), 7), np.int64)  # `FIELDS` of triton_step.py
    fields[:, 0] = [p.data_ptr() for p in params]
    fields[:, 1] = np.add(places[0], places[1])  # at most one of the two is not 0
    fields[:, 2], fields[:, 3] = places[2], places[3]
    fields[:, 4] = [p.numel() for p in params]
    fields[:, 6] = np.maximum(
        -(-fields[:, 4] // CHUNK), 1
    )  # an empty layer needs a chunk that stores its ratio
    by_kind: dict[tuple[torch.dtype, bool], list[int]] = {}
    for i, p in enumerate(params):
        by_kind.setdefault((p.dtype, not (fields[i, :3] % _ALIGNMENT).any()), []).append(i)
    owners: list[NDArray[np.int64]] = []
    kinds: list[_Kind] = []
    first = 0
    for (dtype, aligned), members in by_kind.items():
        counts = fields[members, 6]
        fields[members, 5] = first + np.cumsum(counts) - counts
        owners.append(np.repeat(members, counts))
        kinds.append(_Kind(dtype_of(dtype), aligned, first, int(counts.sum())))
        first += kinds[-1].chunks
    owner = np.concatenate(owners)
    return fields, np.stack([owner, np.arange(first) - fields[owner, 5]], axis=1), kinds


@functools.cache
def is_usable(device: torch.device) -> bool:
    """Return whether the kernels compute correct steps on a device.

    The first call for a device builds and tests the kernels, and waits for the device.
    """
    try:
        _check(device)
    except Exception as error:  # noqa: BLE001 — foreach operations work in any case
        _log.info("trustlens: no fused step on %s (%s: %s)", device, type(error).__name__, error)
        return False
    return True


def _check(device: torch.device) -> None:
    """Raise ArithmeticError if the kernels compute a wrong step."""
    sizes = (19, 3 * BLOCK)
    # No random tensors: drawing them would change the random numbers of the training.
    weights = [torch.linspace(-1, 2, n, dtype=torch.float32, device=device) for n in sizes]
    grads, before = [w.cos() for w in weights], [w.clone() for w in weights]
    entries = {
        name: [torch.zeros_like(w) for w in weights] for name in ("exp_avg", "exp_avg_sq")
    } | {
        "step": [torch.zeros((), dtype=torch.float32, device="cpu") for _ in weights],
        "trust_ratio": [torch.zeros_like(w[0]) for w in weights],
    }
    rows = Rows(weights, entries)
    rows.set_gradients([g.data_ptr() for g in grads])
    norms: list[Tensor] = []

    def ratios_of_2(weight_norms: Tensor, direction_norms: Tensor) -> Tensor:
        norms[:] = weight_norms, direction_norms
        return torch.full_like(weight_norms, 2.0)

    options = Options(rate=0.5, beta1=0.9, beta2=0.99, epsilon=1e-3, decay=0.1, debias=1)
    rows.step(LAMB, options, ratios_of_2, measures=False)
    correct: list[Tensor] = []
    for i, (w, g, after) in enumerate(zip(before, grads, weights, strict=True)):
        u = g / (g.abs() + 1e-3) + 0.1 * w
        for found, expected in (
            *((after, w - u), (entries["trust_ratio"][i], torch.full_like(w[0], 2.0))),
            *((norms[0][i], w.double().norm()), (norms[1][i], u.double().norm())),
        ):
            correct.append(((found - expected).abs() <= 1e-5 * expected.abs() + 1e-5).all())
    if not all_true(torch.stack(correct)):
        raise ArithmeticError("the kernels give wrong results")
