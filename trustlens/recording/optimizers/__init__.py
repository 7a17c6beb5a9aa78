"""Compute what an optimizer did in a step from its state, for every optimizer family.

``direction`` has the formula of the update direction that all optimizers share, and the class that
describes an optimizer family. ``torch_optim``, ``own`` and ``third_party`` return
the coefficients and tensors that each optimizer has in that formula; ``measured`` computes a
direction from the change of the weights.
``registry`` has the table of known optimizers and explains how to add one.
"""

from trustlens.recording.optimizers.direction import (
    Direction,
    Family,
    Group,
    Stepped,
    float_or_tensor,
    is_on_accelerator,
)
from trustlens.recording.optimizers.registry import family_of

__all__ = [
    "Direction",
    "Family",
    "Group",
    "Stepped",
    "family_of",
    "float_or_tensor",
    "is_on_accelerator",
]
