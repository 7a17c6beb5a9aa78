"""Fail a test that leaves recorders, hooks, threads or patches behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.amp.grad_scaler import GradScaler
from torch.nn.modules import module
from torch.optim import Optimizer, optimizer

from trustlens.recording.hooks import grad_scaler
from trustlens.recording.options import BEING_RECORDED

SECONDS_TO_END = 5  # time for a thread to end after the test
# Without the classes of optimizers, since torch itself wraps their `step`.
PATCHABLE = (
    torch,
    torch.cuda,
    torch.Tensor,
    torch.nn.Module,
    torch.nn.utils,
    Optimizer,
    GradScaler,
)


@pytest.fixture(autouse=True)
def fails_on_leaks() -> Iterator[None]:
    """Compare recorders, hooks, threads and patches before and after each test and its fixtures."""
    left, functions = everything_left(), patchable_functions()
    yield
    deadline = time.monotonic() + SECONDS_TO_END
    while (new := everything_left().keys() - left.keys()) and time.monotonic() < deadline:
        if not any(isinstance(key, threading.Thread) for key in new):
            break
        time.sleep(0.02)
    leaks = [text for key, text in everything_left().items() if key not in left]
    after = patchable_functions()
    leaks += [
        f"{name} is patched"
        for name, one in functions.items()
        if after.get(name) is not one and not is_patch_of_dynamo(after.get(name))
    ]
    assert not leaks, f"the test left behind: {', '.join(leaks)}"


def everything_left() -> dict[Any, str]:
    """Return a description of each existing recorder, hook and thread."""
    left: dict[Any, str] = {}
    for one in BEING_RECORDED:
        left["recorder", id(one)] = f"an open recorder of {type(one).__name__}"
    for one in grad_scaler._followers:
        left["hooks", id(one)] = "hooks of an optimizer"
    for owner in (module, optimizer):
        for name, registry in vars(owner).items():
            if name.startswith("_global_") and name.endswith("_hooks"):
                left |= {(name, key): f"a hook in {owner.__name__}.{name}" for key in registry}
    for thread in threading.enumerate():
        if thread.name.startswith("trustlens"):
            left[thread] = f"the thread {thread.name}"
    return left


def patchable_functions() -> dict[str, Any]:
    """Return the functions of torch that a patch may replace, by name."""
    return {
        f"{owner.__name__}.{name}": value
        for owner in PATCHABLE
        for name, value in vars(owner).items()
        if callable(value)
    }


def is_patch_of_dynamo(function: Any) -> bool:
    """Return whether torch.compile made a patch, which it leaves on ``Module`` for good."""
    return str(getattr(function, "__module__", "")).startswith("torch._dynamo")
