"""Look up a quantity by its name, and find the family of a recorded optimizer."""

from __future__ import annotations

from collections.abc import Sequence

from trustlens.errors import UsageError
from trustlens.families import family_of_class
from trustlens.schema import QUANTITIES, Quantity
from trustlens.store.run_info import OptimizerInfo


def family_of(optimizer: OptimizerInfo) -> str:
    """Return an optimizer's family, such as ``"LAMB"``.

    If the family is unknown, return the name of the optimizer's class.
    """
    return optimizer.family or family_of_class(optimizer.name.rpartition(".")[2])


def require_list(parameter: str, names: Sequence[str]) -> Sequence[str]:
    """Return ``names`` unchanged, but reject a plain string.

    ``parameter`` is the name of the parameter for which the caller received ``names``. It is used
    in the error message.

    Raises
    ------
    UsageError
        If ``names`` is a string: iterating it would yield its letters.
    """
    if isinstance(names, str):
        raise UsageError(f"{parameter} got the string '{names}'; pass a list: ['{names}']")
    return names


def quantity(name: str) -> Quantity:
    """Return the quantity with this name.

    Raises
    ------
    UsageError
        If no quantity has this name; the message lists all names.
    """
    try:
        return QUANTITIES[name]
    except KeyError:
        raise UsageError(
            f"'{name}' is not a quantity; choose one of: {', '.join(QUANTITIES)}"
        ) from None
