"""The sums on any device, with PyTorch operations.

Tensors are processed in chunks that fit the processor's cache. All intermediate results are in a
few scratch buffers of a chunk's size, so memory use does not depend on the model's size. Arithmetic
is in float64, so that squares of float32 numbers neither overflow nor underflow, except on devices
without float64 (MPS), where it is in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final, NamedTuple

import torch
from torch import Tensor

from trustlens.kernels.sums import FIRST_MAXIMUM, SUMS
from trustlens.recording.optimizers import Direction
from trustlens.recording.statistics.elements import count_steps
from trustlens.recording.statistics.layer_step import LayerStep, undo

CHUNK: Final = 1 << 14
"""Number of elements in a chunk. Ten float64 buffers of this length take 1.3 MiB.

PyTorch runs operations of this size in one thread. `torch.dot` and `torch.sqrt` are not used in
this file, because MKL splits them over threads at any size. On a busy machine, such a call waits
milliseconds for the threads.
"""

_NO_FLOAT64: Final = frozenset({"mps"})
_BUFFERS: Final = 10


class _Tensors(NamedTuple):
    """The flattened tensors of a layer, or one chunk of each of these tensors."""

    after: Tensor
    before: Tensor | None
    grad: Tensor | None
    base: Tensor | None
    variance: Tensor | None
    momentum: Tensor | None

    def at(self, start: int) -> _Tensors:
        """Return the chunk that begins at element ``start``."""
        end = start + CHUNK
        others = (None if each is None else each[start:end] for each in self[1:])
        return _Tensors(self.after[start:end], *others)


class TorchBackend:
    """Computes the sums with PyTorch operations, layer by layer and chunk by chunk.

    An instance has one set of scratch buffers for each device and reuses them in later steps.
    """

    name: ClassVar[str] = "portable"

    def __init__(self) -> None:
        self._scratch: dict[torch.device, Tensor] = {}

    def measure(self, steps: Sequence[LayerStep]) -> Tensor:
        """Return the sums of each layer, float64 of shape (layers, len(SUMS)).

        All layers are on one device, and so is the result (float32 on devices without float64).
        """
        return torch.stack([self._layer(step) for step in steps])

    def measure_and_count(self, steps: Sequence[LayerStep]) -> tuple[Tensor, Tensor]:
        """Return the sums, and the element histograms that :func:`count_steps` describes."""
        return self.measure(steps), count_steps(steps)

    def _layer(self, step: LayerStep) -> Tensor:
        scratch = self._buffers(step.after.device)
        form = step.direction
        layer = _Tensors(
            step.after.reshape(-1),
            *(
                None if tensor is None else tensor.reshape(-1)
                for tensor in (
                    step.before,
                    step.grad,
                    form.base if form else None,
                    form.variance if form else None,
                    form.momentum if form else None,
                )
            ),
        )
        size = step.after.numel()
        chunks = [
            _measure_chunk(layer.at(start), scratch[:, : min(CHUNK, size - start)], form)
            for start in range(0, max(size, 1), CHUNK)
        ]
        if len(chunks) == 1:
            return chunks[0]
        rows = torch.stack(chunks)
        return torch.cat([rows[:, :FIRST_MAXIMUM].sum(0), rows[:, FIRST_MAXIMUM:].amax(0)])

    def _buffers(self, device: torch.device) -> Tensor:
        if device not in self._scratch:
            dtype = torch.float32 if device.type in _NO_FLOAT64 else torch.float64
            self._scratch[device] = torch.empty((_BUFFERS, CHUNK), dtype=dtype, device=device)
        return self._scratch[device]


def _measure_chunk(tensors: _Tensors, scratch: Tensor, form: Direction | None) -> Tensor:
    """Return the sums of one chunk, shape (len(SUMS),); each row of ``scratch`` is a buffer."""
    after, w, g, d, den, v, u, spare, broken, extra = scratch.unbind()
    after.copy_(tensors.after)
    if tensors.grad is not None:
        g.copy_(tensors.grad)
    known = form is not None and tensors.grad is not None
    divides = False
    if form is not None and known:
        divides = _start_direction(form, tensors, (g, d, den, v, spare))
    if tensors.before is not None:
        w.copy_(tensors.before)
    elif form is not None and known:
        step = spare.copy_(d) if not divides else torch.div(d, den, out=spare)
        undo(w.copy_(after), step.mul_(form.rate), form, tensors.after.dtype)
    else:
        w.copy_(after)
    update = after.sub_(w)
    sums = {
        "weight_squares": _dot(w, w, spare),
        "update_squares": _dot(update, update, spare),
        "update_dot_weight": _dot(update, w, spare),
        "update_max": _largest(update, spare),
    }
    torch.mul(w, 0.0, out=broken)  # 0 for finite elements, else NaN, which counts as nonzero
    if tensors.grad is not None:
        broken.add_(torch.mul(g, 0.0, out=spare))
        sums["grad_squares"] = _dot(g, g, spare)
        sums["grad_max"] = _largest(g, spare)
        sums["zero_grad"] = w.numel() - torch.count_nonzero(g)
    sums["nonfinite"] = torch.count_nonzero(broken)
    if form is not None and known:
        _finish_direction(form, (w, update, d), den if divides else None, spare)
        sums |= _sums_of_averages(form, tensors, (g, v, spare, extra))
        sums |= _sums_of_direction(form, (w, update, d, u), spare)
    missing = torch.full((), torch.nan, dtype=w.dtype, device=w.device)
    return torch.stack([sums.get(name, missing).to(w.dtype) for name in SUMS])


def _start_direction(form: Direction, tensors: _Tensors, buffers: tuple[Tensor, ...]) -> bool:
    """Compute v̂, the terms of d that do not contain w, and the denominator ``den``, in buffers.

    Return whether d is divided by ``den``.
    """
    g, d, den, v, spare = buffers
    d.zero_()
    _add_scaled(d, g, form.grad_share, spare)
    if tensors.base is not None:
        _add_scaled(d, spare.copy_(tensors.base), form.base_share, spare)
    if tensors.variance is None:
        return False
    v.copy_(tensors.variance).mul_(form.variance_share)
    if form.divides:
        torch.rsqrt(v, out=den).reciprocal_().add_(form.epsilon)
    return form.divides


def _finish_direction(
    form: Direction, chunk: tuple[Tensor, Tensor, Tensor], den: Tensor | None, spare: Tensor
) -> None:
    """Complete d: add the term c·w, divide by ``den``, and add the term e·Δw.

    The terms are added before the division. If each term were divided, two quotients could be ∞
    and −∞ where ``den`` is 0, and their sum would be NaN.
    """
    w, update, d = chunk
    _add_scaled(d, w, form.weight_share, spare)
    if den is not None:
        d.div_(den)
    _add_scaled(d, update, form.update_share, spare)


def _sums_of_averages(
    form: Direction, tensors: _Tensors, buffers: tuple[Tensor, ...]
) -> dict[str, Tensor]:
    g, v, spare, extra = buffers
    sums: dict[str, Tensor] = {}
    if tensors.momentum is not None:
        m = extra.copy_(tensors.momentum)
        sums["grad_dot_momentum"] = _dot(g, m, spare)
        sums["momentum_squares"] = _dot(m, m, spare)
    if tensors.variance is not None:
        sums["variance_sum"] = v.sum()
        torch.mul(g, g, out=spare).div_(v.clamp_(min=form.epsilon**2))
        sums["surprise_sum"] = spare.sum()
    return sums


def _sums_of_direction(
    form: Direction, chunk: tuple[Tensor, Tensor, Tensor, Tensor], spare: Tensor
) -> dict[str, Tensor]:
    w, update, d, u = chunk
    torch.add(d, w, alpha=form.decay, out=u) if form.decay else u.copy_(d)
    moved, wanted = torch.ne(update, 0), torch.ne(u, 0)
    return {
        "direction_squares": _dot(u, u, spare),
        "undecayed_squares": _dot(d, d, spare),
        "undecayed_dot_weight": _dot(d, w, spare),
        "swallowed": torch.count_nonzero(wanted & ~moved),
    }


def _add_scaled(total: Tensor, values: Tensor, share: float | Tensor, spare: Tensor) -> None:
    if _is_nonzero(share):
        total.add_(torch.mul(values, share, out=spare))


def _is_nonzero(share: float | Tensor) -> bool:
    """Return whether to compute a term, given its coefficient ``share``.

    A term with coefficient 0 is omitted, since 0·∞ would be NaN. A tensor counts as nonzero.
    """
    return isinstance(share, Tensor) or share != 0


def _dot(a: Tensor, b: Tensor, spare: Tensor) -> Tensor:
    return torch.mul(a, b, out=spare).sum()


def _largest(values: Tensor, spare: Tensor) -> Tensor:
    if values.numel() == 0:
        return values.sum()
    return torch.abs(values, out=spare).amax()
