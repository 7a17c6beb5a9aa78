"""What each optimizer family did in a step: in closed form from its state, or measured.

``form`` has the one formula and what a family is; ``plain`` knows torch.optim, ``layerwise`` the
LAMB and LARS of this and other packages, ``measured`` reads a direction off the weights;
``families`` finds the family of an optimizer. To add
one, write a function from a layer's step to its :class:`Direction` and list it there.
"""

from trustlens.recording.optimizers.direction import (
    Direction,
    Family,
    Group,
    RatioRule,
    Stepped,
    number,
    reading_waits,
    steps_done,
)
from trustlens.recording.optimizers.registry import family_of

__all__ = [
    "Direction",
    "Family",
    "Group",
    "RatioRule",
    "Stepped",
    "family_of",
    "number",
    "reading_waits",
    "steps_done",
]
