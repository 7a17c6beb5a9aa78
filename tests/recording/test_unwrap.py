"""The torch optimizer inside wrappers: the one whose hooks torch calls."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from trustlens.recording.unwrap import calls_hooks, unwrapped


class NeverMade(torch.optim.SGD):
    """As Accelerate's wrapper: an Optimizer whose ``__init__`` was not called."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups


def _optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)


@pytest.mark.parametrize("attribute", ["optimizer", "_optimizer", "optim", "base"])
def test_it_is_found_in_every_attribute_that_wrappers_use(attribute: str) -> None:
    inner = _optimizer()
    wrapper = SimpleNamespace(**{attribute: inner}, param_groups=inner.param_groups)
    assert unwrapped(wrapper) is inner
    assert unwrapped(NeverMade(wrapper)) is inner  # type: ignore[arg-type]


def test_one_whose_hooks_are_called_is_returned_though_it_has_another_inside() -> None:
    outer: Any = _optimizer()
    outer.base = _optimizer()
    assert unwrapped(outer) is outer


@pytest.mark.parametrize("other", [None, "adam", SimpleNamespace(optimizer=_optimizer())])
def test_what_has_no_groups_is_returned_as_it_is(other: Any) -> None:
    assert unwrapped(other) is other


def test_a_wrapper_without_an_optimizer_inside_is_returned_as_it_is() -> None:
    wrapper = SimpleNamespace(param_groups=[], optimizer=None)
    assert unwrapped(wrapper) is wrapper


def test_whose_hooks_torch_calls() -> None:
    """Told by whether a hook that is registered is called in a step."""
    for make in (_optimizer, lambda: NeverMade(_optimizer())):
        optimizer, called = make(), []
        try:
            optimizer.register_step_pre_hook(lambda *_, called=called: called.append(1))
            optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
            optimizer.step()
        except AttributeError:
            pass
        assert calls_hooks(optimizer) == bool(called)
