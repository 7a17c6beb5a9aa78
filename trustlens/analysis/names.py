"""Looking up quantities, and the usual names of optimizers."""

from __future__ import annotations

from collections.abc import Sequence

from trustlens.errors import UsageError
from trustlens.families import family_of_class
from trustlens.schema import QUANTITIES, Quantity
from trustlens.store.run_info import OptimizerInfo


def family_of(optimizer: OptimizerInfo) -> str:
    """Return the usual name of an optimizer: ``"Adam"``, ``"LAMB"``, …; else its class."""
    return optimizer.family or family_of_class(optimizer.name.rpartition(".")[2])


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
