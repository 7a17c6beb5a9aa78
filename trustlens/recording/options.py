"""Check the arguments of `record`."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from torch import nn
from torch.optim import Optimizer

from trustlens.errors import UsageError
from trustlens.recording.unwrap import calls_hooks, unwrapped
from trustlens.store.address import is_address
from trustlens.store.segments.precision import MANTISSA

BEING_RECORDED: Final[weakref.WeakSet[Optimizer]] = weakref.WeakSet()
"""Optimizers being recorded. Recording one twice would count each of its steps twice."""


def checked_optimizers(given: Any) -> list[Optimizer]:
    """Return the optimizers passed to ``record``, as a list and without their wrappers.

    Raises
    ------
    UsageError
        If no optimizer is given, if one is invalid, or if one is given twice.
    """
    several = isinstance(given, Iterable) and not isinstance(given, str)
    optimizers = [unwrapped(optimizer) for optimizer in (list(given) if several else [given])]
    if not optimizers:
        raise UsageError("record got an empty list of optimizers; give at least one")
    for optimizer in optimizers:
        _check_optimizer(optimizer)
    if len({id(optimizer) for optimizer in optimizers}) < len(optimizers):
        raise UsageError("record got the same optimizer twice; give each one once")
    return optimizers


def check_options(**given: Any) -> None:
    """Raise UsageError if an argument of ``record`` other than ``optimizer`` is invalid."""
    for name, value in given.items():
        is_valid, valid_values = _OPTIONS[name]
        if not is_valid(value):
            short = isinstance(value, int | float | str | None)  # other types may have a long repr
            got = f"{name}={value!r}" if short else f"{type(value).__name__!r} for {name}"
            raise UsageError(f"record got {got}; give {valid_values}")


def _is_integer(value: Any, least: int, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


_OPTIONS: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "directory": (is_address, "a path or an address, such as 'runs/lamb'"),
    "model": (lambda value: isinstance(value, nn.Module | None), "a torch.nn.Module, or None"),
    "name": (lambda value: isinstance(value, str | None), "a string, or None"),
    "config": (
        lambda value: isinstance(value, Mapping | None),
        "a mapping, such as vars(arguments)",
    ),
    "every": (lambda value: _is_integer(value, 1), "an integer of at least 1"),
    "histograms_every": (lambda value: _is_integer(value, 0), "an integer of at least 0"),
    "resume": (_is_flag, "True or False"),
    "fsync": (_is_flag, "True or False"),
    "precision": (
        lambda value: value is None or _is_integer(value, 1, MANTISSA),
        f"a whole number of bits from 1 to {MANTISSA}, or None",
    ),
    "listeners": (
        lambda value: isinstance(value, Iterable) and not isinstance(value, str),
        "a list of listeners",
    ),
}
"""For each option: a function that checks its value, and the valid values in words."""


def _check_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, Optimizer):
        raise UsageError(
            f"record got {type(optimizer).__name__!r} for an optimizer; "
            "give a torch.optim.Optimizer or a list of them"
        )
    if not calls_hooks(optimizer):
        raise UsageError(
            f"torch calls no step hooks of the {type(optimizer).__name__} given to record, so its "
            "steps cannot be recorded; call torch.optim.Optimizer.__init__ in its __init__, or "
            "give the optimizer that it wraps"
        )
    if not any(group["params"] for group in optimizer.param_groups):
        raise UsageError(
            f"the {type(optimizer).__name__} given to record has no parameters; "
            "give it the model's parameters first"
        )
    if optimizer in BEING_RECORDED:
        raise UsageError(
            f"this {type(optimizer).__name__} is being recorded already; close its recorder first"
        )
