"""Names of optimizer families, as the literature spells them.

A run stores the name of its optimizer's family; figures choose colours by it, and the diagnosis
of variants asks for it. Only families that more than one module names are listed here: for any
other, the name is that of the optimizer's class.
"""

from __future__ import annotations

from typing import Final

ADAM: Final = "Adam"
ADAMW: Final = "AdamW"
NADAM: Final = "NAdam"
RADAM: Final = "RAdam"
ADAMAX: Final = "Adamax"
SGD: Final = "SGD"
LAMB: Final = "LAMB"
LARS: Final = "LARS"

_BY_CLASS: Final = {"Lamb": LAMB, "Lars": LARS}


def family_of_class(name: str) -> str:
    """Return the family of an optimizer class by its name, without the module."""
    return _BY_CLASS.get(name, name)
