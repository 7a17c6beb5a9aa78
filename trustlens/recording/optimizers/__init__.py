"""Compute what an optimizer did in a step from its state, for every optimizer family.

``direction`` has the formula that all optimizers share and the description of a family.
``torch_optim``, ``own`` and ``third_party`` have the directions in closed form; ``measured``
computes a direction from the change of the weights. ``registry`` has the table of optimizers and
says how to add one.
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
