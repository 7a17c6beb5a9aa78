"""Wrapped optimizers, compiled steps, and subclasses that call their parent's step."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import Optimizer

import trustlens
from trustlens.errors import UsageError

# Stand-ins for wrappers of other packages, so that the tests do not need these packages.


class Accelerated(Optimizer):
    """Like Accelerate's AcceleratedOptimizer: an Optimizer whose __init__ is never called."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def step(self, closure=None):
        return self.optimizer.step(closure)


class Lightning:
    """Like Lightning's LightningOptimizer: a subclass of the wrapped class that forwards to it."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        own = type(optimizer)
        self.__class__ = type("Lightning" + own.__name__, (self.__class__, own), {})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)

    def step(self, closure=None):
        return self._optimizer.step(closure)


class Lookahead(Optimizer):
    """Like torch-optimizer's Lookahead: shares the inner groups, and changes the weights itself."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups
        self.state = {}

    def step(self, closure=None):
        loss = self.optimizer.step(closure)
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p.mul_(0.5)
        return loss


class LocalSGD(Optimizer):
    """Like torch's PostLocalSGDOptimizer."""

    def __init__(self, optim: Any) -> None:
        self.optim = optim
        self.param_groups = optim.param_groups

    def step(self):
        return self.optim.step()


class ScheduleFree:
    """Like schedulefree's ScheduleFreeWrapper: not a torch Optimizer."""

    def __init__(self, base: Any) -> None:
        self.base = base

    @property
    def param_groups(self):
        return self.base.param_groups

    def step(self, closure=None):
        return self.base.step(closure)


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))


def train(model: nn.Module, step: Callable[[], Any], steps: int) -> None:
    make = torch.Generator().manual_seed(1)
    for _ in range(steps):
        model.zero_grad()
        model(torch.randn(4, 6, generator=make)).square().mean().backward()
        step()


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "wrap",
    [
        Accelerated,
        Lightning,
        Lookahead,
        LocalSGD,
        ScheduleFree,
        lambda inner: Accelerated(Lookahead(inner)),
    ],
)
def test_the_optimizer_inside_a_wrapper_is_recorded(
    tmp_path: Path, wrap: Callable[[Any], Any]
) -> None:
    plain, model = two_layers(), two_layers()
    train(plain, wrap(torch.optim.Adam(plain.parameters())).step, 3)
    inner = torch.optim.Adam(model.parameters())
    outer = wrap(inner)
    with trustlens.record(outer, tmp_path / "run", model=model) as recorder:
        train(model, outer.step, 3)
        assert recorder.step == 3
        with pytest.raises(UsageError, match="this Adam is being recorded already"):
            trustlens.record(inner, tmp_path / "second")
        with pytest.raises(UsageError, match="this Adam is being recorded already"):
            trustlens.record(outer, tmp_path / "second")
    assert_same(plain, model)
    with pytest.raises(UsageError, match="the same optimizer twice"):
        trustlens.record([outer, inner], tmp_path / "second")
    assert not (tmp_path / "second").exists()
    run = trustlens.open_run(tmp_path / "run")
    assert run.info.optimizers[0].name == "torch.optim.adam.Adam"
    assert run.matrix("nonfinite").index.tolist() == [1, 2, 3]
    assert run.matrix("debias1")["0.weight"].tolist() == pytest.approx(
        [1 / (1 - 0.9**t) for t in (1, 2, 3)], rel=1e-6
    )


def test_a_wrapper_that_has_hooks_is_recorded_itself(tmp_path: Path) -> None:
    """Like pytorch_optimizer's Lookahead: the update then includes the wrapper's change."""

    class Halving(Optimizer):
        def __init__(self, optimizer: Optimizer) -> None:
            super().__init__(optimizer.param_groups, optimizer.defaults)
            self.optimizer = optimizer

        def step(self, closure=None):
            self.optimizer.step(closure)
            with torch.no_grad():
                for p in self.param_groups[0]["params"]:
                    p.mul_(0.5)

    weight = nn.Parameter(torch.full((3,), 2.0))
    optimizer = Halving(torch.optim.SGD([weight], lr=0.0))
    weight.grad = torch.ones(3)
    with trustlens.record(optimizer, tmp_path):
        optimizer.step()
    update = trustlens.open_run(tmp_path).matrix("update_norm")
    assert update.loc[1].tolist() == pytest.approx([3**0.5])


def test_an_optimizer_whose_hooks_are_not_called_is_refused(tmp_path: Path) -> None:
    class NotInitialized(Optimizer):
        def __init__(self, parameters: Any) -> None:
            self.param_groups = [{"params": list(parameters)}]

        def step(self, closure=None): ...

    class Trainer:
        def __init__(self, optimizer: Optimizer) -> None:
            self.optimizer = optimizer

    parameters = list(two_layers().parameters())
    for given, message in (
        (
            NotInitialized(parameters),
            r"no step hooks of the NotInitialized .* torch\.optim\.Optimizer\.__init__",
        ),
        (Accelerated(NotInitialized(parameters)), "no step hooks of the NotInitialized"),
        (Trainer(torch.optim.SGD(parameters)), "got 'Trainer' for an optimizer"),
    ):
        with pytest.raises(UsageError, match=message):
            trustlens.record(given, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Compiled steps. The first one makes torch import a module that warns about torch.jit.
compiles = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Decaying(torch.optim.AdamW):
    """Calls its parent's step, which also calls hooks once an AdamW has been created."""

    def step(self, closure=None):
        with torch.no_grad():
            torch._foreach_mul_(self.param_groups[0]["params"], 0.9)
        return super().step(closure)


MADE: dict[str, Callable[[Any], Optimizer]] = {
    "AdamW": functools.partial(torch.optim.AdamW, lr=0.01),
    "SGD": functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9, foreach=False),
    "subclass": functools.partial(Decaying, lr=0.01),
}


@compiles
@pytest.mark.parametrize(
    ("name", "backend"),
    [("AdamW", "eager"), ("AdamW", "aot_eager"), ("SGD", "aot_eager"), ("subclass", "eager")],
)
def test_a_compiled_step_is_recorded_like_an_uncompiled_one(
    tmp_path: Path, name: str, backend: str
) -> None:
    def compiled(optimizer: Optimizer) -> Callable[[], Any]:
        torch._dynamo.reset()
        return torch.compile(optimizer.step, backend=backend)

    plain, model = two_layers(), two_layers()
    torch.optim.AdamW(two_layers().parameters())
    train(plain, compiled(MADE[name](plain.parameters())), 6)

    optimizer = MADE[name](model.parameters())
    step = compiled(optimizer)
    make = torch.Generator().manual_seed(1)
    seen: list[dict[str, list[float]]] = []
    for t in range(6):
        model.zero_grad()
        model(torch.randn(4, 6, generator=make)).square().mean().backward()
        if t == 2:  # compiled before the hooks exist, used until after they are removed
            recorder = trustlens.record(optimizer, tmp_path, model=model)
        elif t == 5:
            recorder.close()
        before = [p.detach().double() for p in model.parameters()]
        step()
        after = [p.detach().double() for p in model.parameters()]
        seen.append(
            {
                "weight_norm": [float(w.norm()) for w in before],
                "update_norm": [float((b - a).norm()) for a, b in zip(before, after, strict=True)],
                "grad_norm": [float(p.grad.double().norm()) for p in model.parameters()],
            }
        )
    assert_same(plain, model)
    run = trustlens.open_run(tmp_path)
    for quantity in seen[0]:
        exact = [step[quantity] for step in seen[2:5]]
        np.testing.assert_allclose(run.matrix(quantity), exact, rtol=2e-5, err_msg=quantity)


@compiles
def test_a_compiled_training_step_is_recorded(tmp_path: Path) -> None:
    def trained(model: nn.Module, optimizer: Optimizer) -> None:
        torch._dynamo.reset()

        def whole(batch: torch.Tensor) -> None:
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()

        step = torch.compile(whole, backend="eager")
        for t in range(4):
            step(torch.randn(4, 6, generator=torch.Generator().manual_seed(t)))

    plain, model = two_layers(), two_layers()
    trained(plain, torch.optim.AdamW(plain.parameters()))
    optimizer = torch.optim.AdamW(model.parameters())
    with trustlens.record(optimizer, tmp_path, model=model):
        trained(model, optimizer)
    assert_same(plain, model)
    assert trustlens.open_run(tmp_path).matrix("nonfinite").index.tolist() == [1, 2, 3, 4]


def move(optimizer: Optimizer, by: float) -> None:
    with torch.no_grad():
        for p in optimizer.param_groups[0]["params"]:
            p.add_(by)


# Subclasses that call their parent's step. torch wraps the step of a class to call hooks when its
# first optimizer is created, so each test defines new classes.


def new_classes() -> tuple[type[Optimizer], type[Optimizer], type[Optimizer]]:
    class Parent(Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {"lr": 1.0})

        def step(self, closure=None):
            move(self, 1.0)
            if closure is not None:
                closure()

    class Child(Parent):
        """Changes the weights before and after its parent's step; catches its ArithmeticError."""

        def step(self, closure=None):
            move(self, 10.0)
            for _ in range(2):
                with contextlib.suppress(ArithmeticError):
                    super().step(closure)
            move(self, 100.0)

    class Grandchild(Child):
        def step(self, closure=None):
            super().step(closure)
            move(self, 1000.0)

    return Parent, Child, Grandchild


@pytest.mark.parametrize("first", ["the parents", "the child"])
@pytest.mark.parametrize(("kind", "update"), [(0, 1), (1, 112), (2, 1112)])
@pytest.mark.parametrize("ending", ["returns", "caught", "raises", "raises in a thread"])
def test_only_the_outermost_step_is_recorded(
    tmp_path: Path, first: str, kind: int, update: float, ending: str
) -> None:
    classes = new_classes()
    if first == "the parents":
        for parent in classes[:kind]:
            parent([nn.Parameter(torch.zeros(1))])
    weight = nn.Parameter(torch.zeros(1))
    optimizer = classes[kind]([weight])

    def broken(error: type[Exception]) -> None:
        raise error("error in the closure")

    def fail() -> None:
        with pytest.raises(ValueError, match="error in the closure"):
            optimizer.step(lambda: broken(ValueError))
        with torch.no_grad():
            weight.zero_()

    starts: list[float] = []
    with trustlens.record(optimizer, tmp_path) as recorder:
        for t in range(1, 4):
            if ending == "raises":
                fail()
            elif ending == "raises in a thread":
                thread = threading.Thread(target=fail)
                thread.start()
                thread.join()
            starts.append(weight.item())
            caught = ending == "caught" and kind > 0
            optimizer.step((lambda: broken(ArithmeticError)) if caught else None)
            assert recorder.step == t
    run = trustlens.open_run(tmp_path)
    assert run.matrix("nonfinite").index.tolist() == [1, 2, 3]
    assert run.matrix("update_norm").iloc[:, 0].tolist() == [update] * 3
    assert run.matrix("weight_norm").iloc[:, 0].tolist() == starts


def test_a_recorder_opened_or_closed_during_a_step(tmp_path: Path) -> None:
    """It does not count a step of which it saw only the beginning or only the end."""
    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    opened: list[trustlens.Recorder] = []
    optimizer.step(lambda: opened.append(trustlens.record(optimizer, tmp_path)))
    (recorder,) = opened
    assert recorder.step == 0
    optimizer.step()
    assert recorder.step == 1
    optimizer.step(recorder.close)
    assert trustlens.open_run(tmp_path).matrix("weight_norm").to_numpy().tolist() == [[0.0]]


def test_nested_steps_of_two_optimizers_of_one_class_are_both_recorded(tmp_path: Path) -> None:
    """A closure may step another optimizer; that is a separate step."""
    first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    outer, inner = torch.optim.SGD([first], lr=1.0), torch.optim.SGD([second], lr=1.0)
    first.grad, second.grad = torch.ones(1), torch.ones(1)
    with trustlens.record([outer, inner], tmp_path):
        for _ in range(2):
            outer.step(inner.step)
    run = trustlens.open_run(tmp_path)
    assert run.matrix("nonfinite").index.tolist() == [1, 2]
    assert run.matrix("update_norm").to_numpy().tolist() == [[1, 1], [1, 1]]
