"""LAMB's and LARS's step on a GPU: the kernels of ``triton_step.py``, and what they are given."""

# torch offers its operations on lists of tensors under private names only:
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

from trustlens.kernels.device import OPTIONS, all_are, brought, on, padded
from trustlens.kernels.sums import SUMS
from trustlens.optim.foreach import to_float
from trustlens.optim.fused_cpu import LAMB, Options

_log: Final = logging.getLogger("trustlens")

CHUNK: Final = 1 << 15
"""Elements that one program steps: enough to hide what it does once."""

BLOCK: Final = 1 << 10
"""Elements it does at a time: a lane then adds 32 numbers in float32."""

_ROWS: Final = 64  # chunks of a layer that are added at a time
_LAYERS: Final = 128  # whose numbers a program makes
_ALIGNMENT: Final = 16  # bytes that a thread reads at once


class _Kind(NamedTuple):
    """Layers that one launch steps: of one dtype, and aligned or not."""

    dtype: Any  # as the kernels have it
    aligned: bool  # but for the gradients, whose addresses change
    first: int  # chunk
    chunks: int


class Rows:
    """Layers on a GPU that are stepped together: as ``Rows`` of fused_cpu.py, without waiting."""

    dtypes: Final = frozenset({torch.float32, torch.float16, torch.bfloat16})

    def __init__(self, params: list[Tensor], entries: Mapping[str, list[Tensor]]) -> None:
        from trustlens.optim import triton_numbers, triton_step  # noqa: PLC0415 — may be missing

        self.params = params
        self._kernels: Any = triton_step
        self._makers: Any = triton_numbers
        self._device = params[0].device
        self._steps = entries.get("step", [])
        self._has_momentum = "momentum_buffer" in entries
        fields, chunks, self._kinds = _laid_out(params, entries)
        self._layers, self._chunks = brought(fields, self._device), brought(chunks, self._device)
        self._grads, self._grads_there = [0], torch.empty(0)
        self._grads_aligned = False

    def take(self, grads: list[int]) -> None:
        """Take the gradients that lie at these addresses, as long as parameters keep them."""
        if grads != self._grads:
            self._grads, self._grads_there = grads, brought(np.array(grads), self._device)
            self._grads_aligned = not any(address % _ALIGNMENT for address in grads)

    def grad_norms(self) -> Tensor:
        """Return the norms of the gradients, float64 (n,)."""
        squares = self._scratch(2)
        with on(self._device):
            self._launch(
                self._kernels.square_gradients,
                *(self._layers, self._grads_there, self._chunks, squares),
            )
            return self._added(squares)[:, 0].sqrt()

    def step(
        self,
        optimizer: int,
        options: Options,
        ratios: Callable[[Tensor, Tensor], Tensor],
        *,
        measures: bool,
    ) -> Tensor | None:
        """Step the layers; return their sums, float64 (n, len(SUMS)), if asked for.

        As ``Rows.step`` of fused_cpu.py; all tensors lie on the device.
        """
        kernels = self._kernels
        of_lars = kernels.LARS if self._has_momentum else kernels.LARS_WITHOUT
        constants = {
            "RULE": kernels.LAMB if optimizer == LAMB else of_lars,
            "MEASURE": measures,
        }
        squares = self._scratch(2)
        sums = self._scratch(len(SUMS)) if measures else squares
        with on(self._device):
            given = (self._layers, self._grads_there, self._numbers(options), self._chunks)
            self._launch(kernels.first_pass, *given, squares, sums, **constants)
            above, below = self._added(squares).sqrt_().unbind(1)
            applied = ratios(above, below).contiguous()
            self._launch(kernels.second_pass, *given, applied, sums, **constants)
            made = self._added(sums) if measures else None
        increment_version(self.params)
        return made

    def _numbers(self, options: Options) -> Tensor:
        """Return what the kernels read of the options and step counts, float32 on the device."""
        if self._steps:
            torch._foreach_add_(self._steps, 1)
        values = (
            *(options.rate, options.beta1, options.beta2, options.epsilon, options.decay),
            options.divisor,
        )
        there = {i: v for i, v in enumerate(values) if isinstance(v, Tensor) and not v.is_cpu}
        at_hand = [0.0 if i in there else to_float(v) for i, v in enumerate(values)]
        times = [step.item() for step in self._steps]  # they lie on the CPU: no waiting
        given = brought(np.array(at_hand + times, np.float64), self._device)
        for i, value in there.items():
            given[i].copy_(value.reshape(()), non_blocking=True)
        n = len(self.params)
        shape = (n, self._makers.NUMBERS.value)
        numbers = torch.empty(shape, dtype=torch.float32, device=self._device)
        self._makers.make_numbers[(-(-n // _LAYERS),)](
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
        shape = (len(self._chunks), columns)
        return torch.empty(shape, dtype=torch.float64, device=self._device)

    def _added(self, scratch: Tensor) -> Tensor:
        """Return the sums of the layers, (n, columns), of those of chunks."""
        n, columns = len(self.params), scratch.shape[1]
        sums = torch.empty((n, columns), dtype=torch.float64, device=self._device)
        self._kernels.add_chunks[(n,)](
            *(self._layers, scratch, sums),
            COLUMNS=columns,
            PADDED=padded(columns),
            ROWS=_ROWS,
            **OPTIONS,
        )
        return sums


def _laid_out(
    params: list[Tensor], entries: Mapping[str, list[Tensor]]
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[_Kind]]:
    """Return the tables of the layers and of their chunks, those of a kind together."""
    from trustlens.kernels.triton_elements import dtype_of  # noqa: PLC0415 — may be missing

    none = [0] * len(params)
    places = [
        list(map(Tensor.data_ptr, entries[name])) if name in entries else none
        for name in ("exp_avg", "momentum_buffer", "exp_avg_sq", "trust_ratio")
    ]
    fields = np.zeros((len(params), 7), np.int64)  # `FIELDS` of triton_step.py
    fields[:, 0] = [p.data_ptr() for p in params]
    fields[:, 1] = np.add(places[0], places[1])  # of which there is one at most
    fields[:, 2], fields[:, 3] = places[2], places[3]
    fields[:, 4] = [p.numel() for p in params]
    fields[:, 6] = np.maximum(-(-fields[:, 4] // CHUNK), 1)  # an empty layer has a ratio too
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
def is_there(device: torch.device) -> bool:
    """Tell whether the kernels step right on a device: built, tried and waited for, once."""
    try:
        _check(device)
    except Exception as error:  # noqa: BLE001 — whatever it is, there is another way
        _log.info("trustlens: no fused step on %s (%s: %s)", device, type(error).__name__, error)
        return False
    return True


def _check(device: torch.device) -> None:
    """Raise ArithmeticError if the kernels do not step right."""
    sizes = (19, 3 * BLOCK)  # not of random numbers, which are the training's
    weights = [torch.linspace(-1, 2, n, dtype=torch.float32, device=device) for n in sizes]
    grads, before = [w.cos() for w in weights], [w.clone() for w in weights]
    entries = {
        name: [torch.zeros_like(w) for w in weights] for name in ("exp_avg", "exp_avg_sq")
    } | {
        "step": [torch.zeros((), dtype=torch.float32, device="cpu") for _ in weights],
        "trust_ratio": [torch.zeros_like(w[0]) for w in weights],
    }
    rows = Rows(weights, entries)
    rows.take([g.data_ptr() for g in grads])
    norms: list[Tensor] = []

    def double(above: Tensor, below: Tensor) -> Tensor:
        norms[:] = above, below
        return torch.full_like(above, 2.0)

    options = Options(rate=0.5, beta1=0.9, beta2=0.99, epsilon=1e-3, decay=0.1, debias=1)
    rows.step(LAMB, options, double, measures=False)
    right: list[Tensor] = []
    for i, (w, g, after) in enumerate(zip(before, grads, weights, strict=True)):
        u = g / (g.abs() + 1e-3) + 0.1 * w
        for found, expected in (
            *((after, w - u), (entries["trust_ratio"][i], torch.full_like(w[0], 2.0))),
            *((norms[0][i], w.double().norm()), (norms[1][i], u.double().norm())),
        ):
            right.append(((found - expected).abs() <= 1e-5 * expected.abs() + 1e-5).all())
    if not all_are(torch.stack(right)):
        raise ArithmeticError("the kernels do not step right")
