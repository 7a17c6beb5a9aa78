"""Find the torch optimizer inside a wrapper object."""

from __future__ import annotations

from typing import Any, Final

from torch.optim import Optimizer

_INNER: Final = ("optimizer", "_optimizer", "optim", "base")
"""Attributes under which wrappers store the wrapped optimizer."""


def unwrapped(optimizer: Any) -> Any:
    """Return the optimizer whose step hooks torch calls: the given one or one wrapped in it.

    The wrappers of Accelerate, Lightning and Lookahead have ``param_groups`` and pass each step to
    an inner optimizer. torch calls the hooks of the inner optimizer only. If no optimizer with
    hooks is found, return the given object itself.
    """
    if calls_hooks(optimizer) or not hasattr(optimizer, "param_groups"):
        return optimizer
    inner = (getattr(optimizer, name, None) for name in _INNER)
    return next((unwrapped(one) for one in inner if hasattr(one, "param_groups")), optimizer)


def calls_hooks(optimizer: Any) -> bool:
    """Return whether torch calls the step hooks that are registered on this object."""
    return (
        isinstance(optimizer, Optimizer)
        and "_optimizer_step_pre_hooks" in vars(optimizer)
        and getattr(type(optimizer).step, "hooked", False)  # set by Optimizer.__init__
    )
