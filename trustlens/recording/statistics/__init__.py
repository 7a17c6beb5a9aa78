"""Sums over a layer's elements, in one pass: what every recorded number is made of.

``reference`` is the truth, in plain formulas; the others are to agree with it. Each has
``measure(steps) -> Tensor``: float64 of shape (layers, len(SUMS)) on the layers' device, NaN
where a sum does not exist, without waiting for the device.
"""

from dataclasses import dataclass
from typing import Final

from torch import Tensor

from trustlens.recording.directions import Direction

SUMS: Final = (
    "weight_squares",  # Σ w²
    "direction_squares",  # Σ (d + λw)²
    "update_squares",  # Σ Δw²
    "grad_squares",  # Σ g²
    "undecayed_squares",  # Σ d²
    "undecayed_dot_weight",  # Σ d·w
    "update_dot_weight",  # Σ Δw·w
    "grad_dot_momentum",  # Σ g·m
    "momentum_squares",  # Σ m²
    "variance_sum",  # Σ v̂
    "surprise_sum",  # Σ g² / max(v̂, ε²)
    "nonfinite",
    "zero_grad",
    "swallowed",
    "update_max",  # from here on maxima
    "grad_max",
)
"""What is summed, in the order of the columns of ``measure``'s result."""

MAXIMA: Final = 2
"""How many of them, at the end, are maxima."""


@dataclass(frozen=True, slots=True)
class LayerStep:
    """One layer in one step: w before, w after, g, and how d is had. All of one shape."""

    before: Tensor
    after: Tensor
    grad: Tensor | None
    direction: Direction | None
