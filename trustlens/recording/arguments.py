"""What is given to `record`: checked, and told in words that ``run.json`` can hold."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from trustlens.errors import UsageError
from trustlens.store.layout import OptimizerInfo

BEING_RECORDED: Final[weakref.WeakSet[Optimizer]] = weakref.WeakSet()
"""Optimizers that are being recorded: hooking one twice would count each step twice."""


def checked_optimizers(given: Any) -> list[Optimizer]:
    """Return the optimizers given to ``record``, or raise UsageError."""
    several = isinstance(given, Iterable) and not isinstance(given, str)
    optimizers: list[Any] = list(given) if several else [given]
    if not optimizers:
        raise UsageError("record got an empty list of optimizers; give at least one")
    for optimizer in optimizers:
        _check_optimizer(optimizer)
    if len({id(optimizer) for optimizer in optimizers}) < len(optimizers):
        raise UsageError("record got the same optimizer twice; give each one once")
    return optimizers


def check_config(config: Any) -> None:
    """Raise UsageError if it is no mapping."""
    if config is not None and not isinstance(config, Mapping):
        raise UsageError(
            f"record got {type(config).__name__!r} for config; "
            "give a mapping, such as vars(arguments)"
        )


def _check_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, Optimizer):
        raise UsageError(
            f"record got {type(optimizer).__name__!r} for an optimizer; "
            "give a torch.optim.Optimizer or a list of them"
        )
    if not any(group["params"] for group in optimizer.param_groups):
        raise UsageError(
            f"the {type(optimizer).__name__} given to record has no parameters; "
            "give it the model's parameters first"
        )
    if optimizer in BEING_RECORDED:
        raise UsageError(
            f"this {type(optimizer).__name__} is being recorded already; close that recorder first"
        )


def describe(optimizer: Optimizer) -> OptimizerInfo:
    """Return what ``run.json`` says of an optimizer."""
    kind = type(optimizer)
    hidden = {"params", "param_names"}
    groups = tuple(
        plain({key: value for key, value in group.items() if key not in hidden})
        for group in optimizer.param_groups
    )
    return OptimizerInfo(f"{kind.__module__}.{kind.__qualname__}", groups)


def plain(value: Any) -> Any:
    """Return the value as JSON can hold it; what it cannot hold becomes text."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.numel() == 1):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no NaN and no infinity
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
