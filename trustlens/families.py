"""Names of optimizer families, spelled as in the literature.

``run.json`` stores the family of each optimizer. Figures choose a run's colour by the family, and
``Run.trust_ratio`` computes other variants only for runs of Adam, AdamW and LAMB. Only families
that several modules refer to are listed here; the name of any other family is the name of the
optimizer's class.
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
    """Return the family of an optimizer class, given the name of the class without its module."""
    return _BY_CLASS.get(name, name)
