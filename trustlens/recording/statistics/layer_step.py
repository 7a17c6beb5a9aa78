"""One layer in one step, as every backend gets it, and the formulas that they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trustlens.recording.optimizers import Direction


@dataclass(slots=True)  # not frozen, as `Direction`
class LayerStep:
    """One layer in one step: w before, w after, g, and the formula of d. All of one shape.

    Without ``before``, the weights before the step are computed from those after it (:func:`undo`)
    if there is a direction, else they did not change.
    """

    before: Tensor | None
    after: Tensor
    grad: Tensor | None
    direction: Direction | None


def numbers_of(form: Direction) -> tuple[Any, ...]:
    """Return what a loop needs of a direction beside its tensors: ``Form`` of ``cpu.c``.

    η, a, b, c, e, h, ε, λ, what the decay leaves of w, and 1 where d is divided, else 0.
    """
    decay = form.decay or 0.0
    kept = form.kept
    return (
        form.rate,
        form.grad_share,
        form.base_share,
        form.weight_share,
        form.update_share,
        form.variance_share,
        form.epsilon,
        decay,
        1 - form.rate * (form.weight_share + decay) if kept is None else kept,
        float(form.divides and form.variance is not None),
    )


def undo(after: Tensor, step: Tensor, form: Direction, dtype: torch.dtype) -> Tensor:
    """Turn the weights after a step into those before it, in place.

    ``w' = w·(1 − η(c + λ)) − η·q``, q being d without its ``c·w``. An optimizer rounds its weights
    after the decay and after the update: undone in two steps, each rounded to the weights' dtype,
    that gives most elements back to the bit, and any other to about their last one.

    Parameters
    ----------
    after : Tensor
        w', float64 (or float32 on devices without it); overwritten.
    step : Tensor
        η·q, of the same shape and dtype.
    form : Direction
        Gives η, c and λ.
    dtype : torch.dtype
        That of the weights: float32 or float64.
    """
    before = _rounded(after.add_(step), dtype)
    kept = form.kept
    if kept is None:
        kept = 1 - form.rate * (form.weight_share + (form.decay or 0.0))
    return before if isinstance(kept, float) and kept == 1.0 else _rounded(before.div_(kept), dtype)


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values if values.dtype == dtype else values.copy_(values.to(dtype))
