"""Find the optimizer whose hooks torch calls inside wrappers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from trustlens.recording.unwrap import calls_hooks, unwrapped


class Uninitialized(torch.optim.SGD):
    """An Optimizer whose ``__init__`` was not called, like Accelerate's wrapper."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups


def _optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)


@pytest.mark.parametrize("attribute", ["optimizer", "_optimizer", "optim", "base"])
def test_the_inner_optimizer_is_found_in_each_attribute_that_wrappers_use(attribute: str) -> None:
    inner = _optimizer()
    wrapper = SimpleNamespace(**{attribute: inner}, param_groups=inner.param_groups)
    assert unwrapped(wrapper) is inner
    assert unwrapped(Uninitialized(wrapper)) is inner  # type: ignore[arg-type]


def test_an_optimizer_whose_hooks_are_called_is_returned_even_if_it_contains_another() -> None:
    outer: Any = _optimizer()
    outer.base = _optimizer()
    assert unwrapped(outer) is outer


@pytest.mark.parametrize("other", [None, "adam", SimpleNamespace(optimizer=_optimizer())])
def test_an_object_without_param_groups_is_returned_unchanged(other: Any) -> None:
    assert unwrapped(other) is other


def test_a_wrapper_without_an_inner_optimizer_is_returned_unchanged() -> None:
    wrapper = SimpleNamespace(param_groups=[], optimizer=None)
    assert unwrapped(wrapper) is wrapper


def test_calls_hooks_agrees_with_torch() -> None:
    """Compare with whether a step calls a registered hook."""
    for make in (_optimizer, lambda: Uninitialized(_optimizer())):
        optimizer, called = make(), []
        try:
            optimizer.register_step_pre_hook(lambda *_, called=called: called.append(1))
            optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
            optimizer.step()
        except AttributeError:
            pass
        assert calls_hooks(optimizer) == bool(called)
