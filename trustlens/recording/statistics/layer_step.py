"""The input of a backend (one layer in one step), and formulas that the backends share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trustlens.recording.optimizers import Direction


@dataclass(slots=True)  # not frozen, which would make it slower to create
class LayerStep:
    """The tensors of one layer in one step, all of one shape: what a backend measures.

    Attributes
    ----------
    before : Tensor, optional
        w, the weights before the step. If None, the backend computes them from the weights after
        the step with :func:`undo`. If the gradient or the direction is None, too, the backend
        assumes that the step did not change the weights.
    after : Tensor
        w + Δw, the weights after the step.
    grad : Tensor, optional
        g, the gradient.
    direction : Direction, optional
        The formula of the direction d; None if d is unknown.
    """

    before: Tensor | None
    after: Tensor
    grad: Tensor | None
    direction: Direction | None


def coefficients_of(form: Direction) -> tuple[Any, ...]:
    """Return the coefficients of a direction, in the order of struct ``Form`` in ``cpu.c``.

    They are η, a, b, c, e, h, ε, λ, the factor by which the decay multiplies w, and a flag. The
    flag is 1 if d is divided by its denominator, else 0. See :class:`Direction` for the symbols.
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
    """Turn the weights after a step into the weights before the step, in place.

    The step is ``w' = w·(1 − η(c + λ)) − η·q``, where q is d without its term ``c·w``. An optimizer
    rounds the weights twice: after the decay and after the update. This function undoes these two
    operations and rounds after each of them. Most elements are then restored exactly; the others
    differ by about their last bit.

    Parameters
    ----------
    after : Tensor
        w', float64 (float32 on devices without float64); overwritten.
    step : Tensor
        η·q, of the shape and dtype of ``after``.
    form : Direction
        The direction, with η, c and λ.
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
