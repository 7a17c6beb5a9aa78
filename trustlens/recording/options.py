"""What is given to `record`: checked, and told in words that ``run.json`` can hold."""

from __future__ import annotations

import math
import os
import platform
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trustlens._version import __version__
from trustlens.errors import UsageError
from trustlens.recording.unwrap import calls_hooks, unwrapped
from trustlens.store.layout import LayerInfo, OptimizerInfo, RunInfo
from trustlens.store.remote_location import RemotePlace
from trustlens.store.segments.precision import MANTISSA

BEING_RECORDED: Final[weakref.WeakSet[Optimizer]] = weakref.WeakSet()
"""Optimizers that are being recorded: hooking one twice would count each step twice."""


def checked_optimizers(given: Any) -> list[Optimizer]:
    """Return the optimizers given to ``record``, or raise UsageError."""
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
    """Raise UsageError if what ``record`` was given beside the optimizers is not of its kind."""
    for name, value in given.items():
        fits, wanted = _OPTIONS[name]
        if not fits(value):
            short = isinstance(value, int | float | str | None)  # of others, repr may be pages
            got = f"{name}={value!r}" if short else f"{type(value).__name__!r} for {name}"
            raise UsageError(f"record got {got}; give {wanted}")


def _is_directory(value: Any) -> bool:
    if isinstance(value, RemotePlace):
        return True
    return isinstance(value, (str, os.PathLike)) and os.fspath(value) not in ("", "file://")


def _is_whole(value: Any, least: int, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


_OPTIONS: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "directory": (_is_directory, "a path or an address, such as 'runs/lamb'"),
    "model": (lambda value: isinstance(value, nn.Module | None), "a torch.nn.Module, or None"),
    "name": (lambda value: isinstance(value, str | None), "a text, or None"),
    "config": (
        lambda value: isinstance(value, Mapping | None),
        "a mapping, such as vars(arguments)",
    ),
    "every": (lambda value: _is_whole(value, 1), "a whole number, 1 or more"),
    "histograms_every": (lambda value: _is_whole(value, 0), "a whole number, 0 or more"),
    "resume": (_is_flag, "True or False"),
    "fsync": (_is_flag, "True or False"),
    "precision": (
        lambda value: value is None or _is_whole(value, 1, MANTISSA),
        f"a whole number of bits from 1 to {MANTISSA}, or None",
    ),
    "listeners": (
        lambda value: isinstance(value, Iterable) and not isinstance(value, str),
        "a list of listeners",
    ),
}
"""What each option may be: a test, and the words for it."""


def _check_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, Optimizer):
        raise UsageError(
            f"record got {type(optimizer).__name__!r} for an optimizer; "
            "give a torch.optim.Optimizer or a list of them"
        )
    if not calls_hooks(optimizer):
        raise UsageError(
            f"torch calls no hooks of the {type(optimizer).__name__} given to record, so its steps "
            "cannot be seen; have it call torch.optim.Optimizer.__init__, or give the optimizer "
            "that it wraps"
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


def describe(optimizer: Optimizer, family: str, variant: str | None) -> OptimizerInfo:
    """Return what ``run.json`` says of an optimizer of that family."""
    kind = type(optimizer)
    hidden = {"params", "param_names"}
    groups = tuple(
        plain({key: value for key, value in group.items() if key not in hidden})
        for group in optimizer.param_groups
    )
    return OptimizerInfo(f"{kind.__module__}.{kind.__qualname__}", groups, family, variant)


def describe_run(
    name: str,
    optimizers: Sequence[OptimizerInfo],
    layers: Sequence[LayerInfo],
    config: Mapping[str, Any],
    **recorder: Any,
) -> RunInfo:
    """Return what ``run.json`` says of a run that begins now."""
    return RunInfo(
        name=name,
        created=datetime.now(UTC).isoformat(),
        optimizers=tuple(optimizers),
        layers=tuple(layers),
        config=plain(config),
        versions={
            "trustlens": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        recorder=recorder,
    )


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
