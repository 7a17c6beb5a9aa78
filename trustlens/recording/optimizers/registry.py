"""Which family an optimizer is of."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Final

import torch
from torch.optim import Optimizer

from trustlens.optim import Lamb, Lars
from trustlens.recording.optimizers import third_party as layerwise
from trustlens.recording.optimizers import torch_optim as plain
from trustlens.recording.optimizers.direction import Family
from trustlens.recording.optimizers.measured import LBFGS, MUON

_TORCH: Final = {
    "AdamW": plain.ADAMW,  # before Adam, from which it inherits
    "Adam": plain.ADAM,
    "SGD": plain.SGD,
    "NAdam": plain.NADAM,
    "RAdam": plain.RADAM,
    "Adamax": plain.ADAMAX,
    "Adagrad": plain.ADAGRAD,
    "RMSprop": plain.RMSPROP,
    "Rprop": plain.RPROP,
    "Adadelta": plain.ADADELTA,
    "ASGD": plain.ASGD,
    "Adafactor": plain.ADAFACTOR,
    "SparseAdam": plain.SPARSE_ADAM,
    "Muon": MUON,
    "LBFGS": LBFGS,
}

FAMILIES: Final[Mapping[type[Optimizer], Family]] = {
    # An older torch lacks the newest of them.
    **{getattr(torch.optim, name): of for name, of in _TORCH.items() if hasattr(torch.optim, name)},
    Lamb: layerwise.LAMB,
    Lars: layerwise.LARS,
}
"""The families that are told by their class."""


def family_of(optimizer: Optimizer) -> Family:
    """Return the family of an optimizer; ``layerwise.UNKNOWN`` if it is of none that is known.

    A subclass counts as its parent only if it steps as its parent does.
    """
    # Unwrapped, since torch wraps `step` anew in each class whose first optimizer is made.
    step = inspect.unwrap(type(optimizer).step)
    for known, family in FAMILIES.items():
        if isinstance(optimizer, known) and step is inspect.unwrap(known.step):
            return family
    return layerwise.third_party(optimizer) or layerwise.UNKNOWN
