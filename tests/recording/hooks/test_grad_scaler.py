"""Gradient scaling: the recorded gradients are unscaled, and skipped steps are recorded as such."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

import trustlens
from trustlens.optim import Lamb

RATE = 0.05
STEPS = 5
SCALE = 1024.0

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "one by one": lambda p: torch.optim.AdamW(p, lr=RATE, foreach=False),
    "foreach": lambda p: torch.optim.AdamW(p, lr=RATE, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=RATE, fused=True),
    # No momentum: if its first step is skipped, torch's fused SGD reads uninitialized memory.
    "SGD, fused": lambda p: torch.optim.SGD(p, lr=RATE, fused=True),
    "Lamb": lambda p: Lamb(p, lr=RATE),
}


@pytest.fixture(autouse=True)
def _grad_scaler_is_restored() -> Iterator[None]:
    before = GradScaler.step
    yield
    assert GradScaler.step is before


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))


def loss_of(model: nn.Module, t: int) -> torch.Tensor:
    make = torch.Generator().manual_seed(t)
    return model(torch.randn(4, 6, generator=make)).square().mean()


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    overflow: Collection[int] = (),
    *,
    clip: float | None = None,
    step: Callable[[GradScaler], Any] | None = None,
) -> dict[str, Any]:
    """Train with gradient scaling; the gradients of the steps in ``overflow`` are infinite."""
    scaler = GradScaler("cpu", init_scale=SCALE, growth_interval=2)
    for t in range(1, STEPS + 1):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, t) * (float("inf") if t in overflow else 1.0)).backward()
        if clip is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        if step is None:
            scaler.step(optimizer)
        else:
            step(scaler)
        scaler.update()
    return scaler.state_dict()


def exact_gradient_norms(model: nn.Module, t: int) -> dict[str, float]:
    """Return each layer's gradient norm at the model's weights, without scaling, in float64."""
    twin = two_layers().double()
    twin.load_state_dict(model.state_dict())
    make = torch.Generator().manual_seed(t)
    twin(torch.randn(4, 6, generator=make).double()).square().mean().backward()
    return {name: float(p.grad.norm()) for name, p in twin.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("overflow", [(), (1,), (2, 3), (5,)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_step_has_a_row_in_steps_and_none_in_layers(
    tmp_path: Path, name: str, overflow: tuple[int, ...]
) -> None:
    plain, model = two_layers(), two_layers()
    plain_state = train(plain, OPTIMIZERS[name](plain.parameters()), overflow)
    optimizer = OPTIMIZERS[name](model.parameters())
    expected: dict[int, dict[str, float]] = {}

    def step(scaler: GradScaler) -> None:
        t = len(expected) + 1
        expected[t] = exact_gradient_norms(model, t)
        scaler.step(optimizer)

    with trustlens.record(optimizer, tmp_path, model=model) as recorder:
        state = train(model, optimizer, overflow, step=step)
        assert recorder.step == STEPS
    assert state == plain_state
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)

    run = trustlens.open_run(tmp_path)
    steps = run.steps()
    assert steps["step"].tolist() == list(range(1, STEPS + 1))
    assert steps["skipped"].tolist() == [t in overflow for t in range(1, STEPS + 1)]
    done = [t for t in range(1, STEPS + 1) if t not in overflow]
    assert run.matrix("nonfinite").index.tolist() == done
    norms = run.matrix("grad_norm")
    for t in done:
        assert norms.loc[t].to_dict() == pytest.approx(expected[t], rel=1e-5), t
    if "SGD" not in name:  # the factors count only the steps that were done
        factors = [1 / (1 - 0.9**n) for n in range(1, len(done) + 1)]
        assert run.matrix("debias1")["0.weight"].tolist() == pytest.approx(factors, rel=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_are_recorded_after_unscaling_and_clipping(tmp_path: Path, name: str) -> None:
    model = two_layers()
    optimizer = OPTIMIZERS[name](model.parameters())
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with trustlens.record(optimizer, tmp_path, model=model):
        train(model, optimizer, {2}, clip=0.01)
    run = trustlens.open_run(tmp_path)
    assert run.steps()["skipped"].tolist() == [False, True, False, False, False]
    norms = run.matrix("grad_norm")
    np.testing.assert_allclose((norms**2).sum(axis=1), 0.01**2, rtol=1e-4)
    twin = two_layers()
    assert all(torch.equal(p, before[n]) for n, p in twin.named_parameters())
    exact = exact_gradient_norms(twin, 1)
    whole = np.sqrt(sum(norm**2 for norm in exact.values()))
    clipped = {layer: norm * 0.01 / whole for layer, norm in exact.items()}
    assert norms.loc[1].to_dict() == pytest.approx(clipped, rel=1e-4)


@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("names", [("foreach", "Lamb"), ("foreach", "fused"), ("fused", "foreach")])
def test_the_gradients_of_one_or_both_of_two_optimizers_overflow(
    tmp_path: Path, names: tuple[str, str], which: tuple[int, ...]
) -> None:
    """A step counts as skipped only if neither optimizer did it."""
    model = two_layers()
    optimizers = [OPTIMIZERS[name](model[i].parameters()) for i, name in enumerate(names)]
    scaler = GradScaler("cpu", init_scale=SCALE)
    with trustlens.record(optimizers, tmp_path, model=model) as recorder:
        for t in (1, 2, 3):
            model.zero_grad()
            scaler.scale(loss_of(model, t)).backward()
            for i in which if t in (2, 3) else ():
                model[i].weight.grad[0, 0] = float("inf")
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
        assert recorder.step == 3
    run = trustlens.open_run(tmp_path)
    steps = run.steps()
    assert steps["step"].tolist() == [1, 2, 3]
    assert steps["skipped"].tolist() == [False, len(which) == 2, len(which) == 2]
    for i in (0, 1):
        done = [1] if i in which else [1, 2, 3]
        assert run.layers(layers=[f"{i}.weight"])["step"].tolist() == done


class Wrapper:
    """Forwards steps to another optimizer, unless it accumulates."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.accumulates = False

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def step(self) -> None:
        if not self.accumulates:
            self.optimizer.step()


def test_a_wrapped_optimizer_passed_to_the_scaler(tmp_path: Path) -> None:
    model = two_layers()
    wrapper = Wrapper(torch.optim.AdamW(model.parameters()))

    def step(scaler: Any) -> None:
        scaler.step(wrapper)
        wrapper.accumulates = False

    with trustlens.record(wrapper, tmp_path / "run", model=model):
        train(model, wrapper.optimizer, {2}, step=step)
        wrapper.accumulates = True  # no step, and none that was skipped for inf
        train(model, wrapper.optimizer, {3}, step=step)
    run = trustlens.open_run(tmp_path / "run")
    assert run.steps()["skipped"].tolist() == [t in (2, 7) for t in range(1, 10)]


def test_disabled_scalers_subclassed_scalers_and_optimizers_that_are_not_recorded(
    tmp_path: Path,
) -> None:
    class Own(GradScaler):
        def step(self, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            return super().step(optimizer, *args, **kwargs)

    model, other = two_layers(), two_layers()
    recorded = torch.optim.SGD(model.parameters(), lr=RATE)
    foreign = torch.optim.SGD(other.parameters(), lr=RATE)
    with trustlens.record(recorded, tmp_path, model=model):
        train(other, foreign, {1, 2})
        for scaler in (GradScaler("cpu", enabled=False), Own("cpu", init_scale=SCALE)):
            scaler.scale(loss_of(model, 1) * float("inf")).backward()
            scaler.step(recorded)
            scaler.update()
    run = trustlens.open_run(tmp_path)
    assert run.steps()["skipped"].tolist() == [False, True]
    assert run.matrix("nonfinite").index.tolist() == [1]


def test_an_error_of_the_scaler_reaches_the_user(tmp_path: Path) -> None:
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    scaler = GradScaler("cpu", init_scale=SCALE)
    with trustlens.record(optimizer, tmp_path, model=model) as recorder:
        scaler.scale(loss_of(model, 1) * float("inf")).backward()
        scaler.step(optimizer)
        with pytest.raises(RuntimeError, match="already been called"):
            scaler.step(optimizer)
        scaler.update()
        with pytest.raises(AssertionError, match="No inf checks"):
            scaler.step(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=RATE))
        assert recorder.step == 1
    assert trustlens.open_run(tmp_path).steps()["skipped"].tolist() == [True]


def test_the_scaler_is_restored_when_the_last_recorder_is_closed(tmp_path: Path) -> None:
    original = GradScaler.step
    optimizers = [torch.optim.SGD(two_layers().parameters(), lr=RATE) for _ in range(2)]
    first, second = (
        trustlens.record(optimizer, tmp_path / str(i)) for i, optimizer in enumerate(optimizers)
    )
    assert GradScaler.step is not original
    assert torch.cuda.amp.GradScaler.step is GradScaler.step
    first.close()
    assert GradScaler.step is not original
    second.close()
    second.close()
    assert GradScaler.step is original
    with (
        pytest.raises(RuntimeError, match="error in the training"),
        trustlens.record(optimizers[0], tmp_path / "interrupted"),
    ):
        raise RuntimeError("error in the training")
    assert GradScaler.step is original


def test_other_code_wraps_the_scaler_while_it_is_recorded(tmp_path: Path) -> None:
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    original, calls = GradScaler.step, []
    try:
        with trustlens.record(optimizer, tmp_path / "a", model=model):
            ours = GradScaler.step

            @functools.wraps(ours)
            def theirs(*args: Any, **kwargs: Any) -> Any:
                calls.append(1)
                return ours(*args, **kwargs)

            GradScaler.step = theirs
            train(model, optimizer, {2})
        assert GradScaler.step is theirs
        train(model, optimizer, {2})
        with trustlens.record(optimizer, tmp_path / "b", model=model):
            train(model, optimizer, {2, 3})  # through two of our wrappers: counted once
        GradScaler.step = ours  # the other code removes its wrapper
        with trustlens.record(optimizer, tmp_path / "c", model=model):
            train(model, optimizer, {4})
        assert GradScaler.step is ours
    finally:
        GradScaler.step = original
    assert len(calls) == 3 * STEPS
    for name, skipped in (("a", {2}), ("b", {2, 3}), ("c", {4})):
        steps = trustlens.open_run(tmp_path / name).steps()
        assert steps["skipped"].tolist() == [t in skipped for t in range(1, STEPS + 1)]
