"""What optimizers and quantities are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from trustlens.errors import UsageError
from trustlens.schema import QUANTITIES, Quantity
from trustlens.store.run_info import OptimizerInfo

FAMILIES: Final = {
    "Adam": "Adam",
    "AdamW": "AdamW",
    "SGD": "SGD",
    "Lamb": "LAMB",
    "LAMB": "LAMB",
    "Lars": "LARS",
    "LARS": "LARS",
}
"""How an optimizer's class is called in the field, where the run does not say it."""


def family_of(optimizer: OptimizerInfo) -> str:
    """Return what the field calls an optimizer: ``"Adam"``, ``"LAMB"``, …; else its class."""
    name = optimizer.name.rpartition(".")[2]
    return optimizer.family or FAMILIES.get(name, name)


def listed(parameter: str, names: Sequence[str]) -> Sequence[str]:
    """Return the names given for a parameter.

    Raises
    ------
    UsageError
        They are one text, whose letters would be taken for names.
    """
    if isinstance(names, str):
        raise UsageError(f"{parameter} got the text '{names}'; give a list: ['{names}']")
    return names


def quantity(name: str) -> Quantity:
    """Return the quantity of that name.

    Raises
    ------
    UsageError
        There is none of that name; the message lists those there are.
    """
    try:
        return QUANTITIES[name]
    except KeyError:
        raise UsageError(
            f"'{name}' is not a quantity; choose one of: {', '.join(QUANTITIES)}"
        ) from None
