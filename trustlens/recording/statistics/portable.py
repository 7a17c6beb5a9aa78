"""The sums on any device that torch has, with torch's own operations.

The tensors are walked in chunks that fit the processor's cache, and every intermediate lives in
a few scratch buffers of a chunk's size: nothing of the model's size is made. Arithmetic is in
float64, so that squares of what float32 can hold neither overflow nor vanish, except on devices
that have no float64 (MPS), where it is in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from trustlens.recording.directions import Direction
from trustlens.recording.statistics import MAXIMA, SUMS, LayerStep

CHUNK: Final = 1 << 14
"""Elements of a chunk: nine float64 buffers of this length are 1.1 MiB.

It is below what torch splits over threads. `torch.dot` and `torch.sqrt` are avoided for the same
reason: MKL splits them at any size, and then waits milliseconds for its threads on a busy machine.
"""

_NO_FLOAT64: Final = frozenset({"mps"})
_BUFFERS: Final = 9


class Portable:
    """Measures layer by layer, chunk by chunk; keeps its scratch from step to step."""

    name: Final = "portable"

    def __init__(self) -> None:
        self._scratch: dict[torch.device, Tensor] = {}

    def measure(self, steps: Sequence[LayerStep]) -> Tensor:
        """Return the sums of each layer, float64 of shape (layers, len(SUMS)).

        The layers lie on one device, and so does the result (float32 where it has no float64).
        """
        return torch.stack([self._layer(step) for step in steps])

    def _layer(self, step: LayerStep) -> Tensor:
        scratch = self._buffers(step.before.device)
        form = step.direction
        tensors = [
            step.before,
            step.after,
            step.grad,
            form.momentum if form else None,
            form.variance if form else None,
        ]
        flat = [None if t is None else t.reshape(-1) for t in tensors]
        size = step.before.numel()
        chunks = [
            _measure_chunk(
                [None if t is None else t[start : start + CHUNK] for t in flat],
                scratch[:, : min(CHUNK, size - start)],
                form,
            )
            for start in range(0, max(size, 1), CHUNK)
        ]
        if len(chunks) == 1:
            return chunks[0]
        rows = torch.stack(chunks)
        return torch.cat([rows[:, :-MAXIMA].sum(0), rows[:, -MAXIMA:].amax(0)])

    def _buffers(self, device: torch.device) -> Tensor:
        if device not in self._scratch:
            dtype = torch.float32 if device.type in _NO_FLOAT64 else torch.float64
            self._scratch[device] = torch.empty((_BUFFERS, CHUNK), dtype=dtype, device=device)
        return self._scratch[device]


def _measure_chunk(
    pieces: Sequence[Tensor | None], scratch: Tensor, form: Direction | None
) -> Tensor:
    """Return the sums of one chunk, shape (len(SUMS),); `scratch` has a row a buffer."""
    w, after, g, m, v = (
        None if piece is None else row.copy_(piece)
        for piece, row in zip(pieces, scratch, strict=False)
    )
    assert w is not None and after is not None  # noqa: S101, PT018 — always given
    spare = scratch[5]
    update = torch.sub(after, w, out=after)
    sums = {
        "weight_squares": _dot(w, w, spare),
        "update_squares": _dot(update, update, spare),
        "update_dot_weight": _dot(update, w, spare),
        "update_max": _largest(update, spare),
    }
    broken = torch.mul(w, 0.0, out=scratch[6])  # 0 where finite, else NaN, which is not zero
    if g is not None:
        broken.add_(torch.mul(g, 0.0, out=spare))
        sums["grad_squares"] = _dot(g, g, spare)
        sums["grad_max"] = _largest(g, spare)
        sums["zero_grad"] = w.numel() - torch.count_nonzero(g)
    sums["nonfinite"] = torch.count_nonzero(broken)
    if g is not None and form is not None:
        sums |= _measure_direction(form, (w, update, g, m, v), scratch[5:])
    missing = torch.full((), torch.nan, dtype=w.dtype, device=w.device)
    return torch.stack([sums.get(name, missing).to(w.dtype) for name in SUMS])


def _measure_direction(
    form: Direction,
    chunk: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None],
    scratch: Tensor,
) -> dict[str, Tensor]:
    w, update, g, m, v = chunk
    d, u, spare = scratch[0].zero_(), scratch[1], scratch[2]
    sums: dict[str, Tensor] = {}
    for share, values in (
        (form.grad_share, g),
        (form.momentum_share, m),
        (form.weight_share, w),
    ):
        if values is None:
            continue
        if isinstance(share, Tensor):
            d.add_(torch.mul(values, share, out=spare))
        elif share:  # not by 0: 0·∞ would be NaN
            d.add_(values, alpha=share)
    if m is not None:
        sums["grad_dot_momentum"] = _dot(g, m, spare)
        sums["momentum_squares"] = _dot(m, m, spare)
    if v is not None:
        v.mul_(form.variance_share)
        d.div_(torch.rsqrt(v, out=spare).reciprocal_().add_(form.epsilon))
        sums["variance_sum"] = v.sum()
        torch.mul(g, g, out=spare).div_(v.clamp_(min=form.epsilon**2))
        sums["surprise_sum"] = spare.sum()
    torch.add(d, w, alpha=form.decay, out=u) if form.decay else u.copy_(d)
    sums["direction_squares"] = _dot(u, u, spare)
    sums["undecayed_squares"] = _dot(d, d, spare)
    sums["undecayed_dot_weight"] = _dot(d, w, spare)
    moved, wanted = torch.ne(update, 0), torch.ne(u, 0)
    sums["swallowed"] = torch.count_nonzero(wanted & ~moved)
    return sums


def _dot(a: Tensor, b: Tensor, spare: Tensor) -> Tensor:
    return torch.mul(a, b, out=spare).sum()


def _largest(values: Tensor, spare: Tensor) -> Tensor:
    if values.numel() == 0:
        return values.sum()
    return torch.abs(values, out=spare).amax()
