"""The input of a backend, one layer in one step, and formulas that the backends share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trustlens.recording.optimizers import Direction


@dataclass(slots=True)  # not frozen, which would make it slower to create
class LayerStep:
    """The tensors of one layer in one step, all of one shape.

    Attributes
    ----------
    before : Tensor, optional
        w, the weights before the step. If None, they are computed from the weights after the step
        by :func:`undo`; without a direction the weights did not change.
    after : Tensor
        w + Δw, the weights after the step.
    grad : Tensor, optional
        g, the gradient.
    direction : Direction, optional
        The formula of d; None if it is unknown.
    """

    before: Tensor | None
    after: Tensor
    grad: Tensor | None
    direction: Direction | None


def coefficients_of(form: Direction) -> tuple[Any, ...]:
    """Return the coefficients of a direction: the members of struct ``Form`` in ``cpu.c``.

    They are η, a, b, c, e, h, ε, λ, the factor that the decay applies to w, and 1 if d is divided
    by its denominator, else 0; see :class:`Direction`.
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

    The step is ``w' = w·(1 − η(c + λ)) − η·q``, where q is d without its term ``c·w``. An optimizer
    rounds the weights after the decay and after the update. Undoing these two operations, each
    rounded to the weights' dtype, restores most elements exactly and the others to about their last
    bit.

    Parameters
    ----------
    after : Tensor
        w', float64 (float32 on devices without float64); overwritten.
    step : Tensor
        η·q, of the same shape and dtype.
    form : Direction
        Contains η, c and λ.
    dtype : torch.dtype
        Dtype of the weights: float32 or float64.
    """
    before = _rounded(after.add_(step), dtype)
    kept = form.kept
    if kept is None:
        kept = 1 - form.rate * (form.weight_share + (form.decay or 0.0))
    return before if isinstance(kept, float) and kept == 1.0 else _rounded(before.div_(kept), dtype)


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values if values.dtype == dtype else values.copy_(values.to(dtype))
