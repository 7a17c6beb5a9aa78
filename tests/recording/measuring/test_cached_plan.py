"""Cached plans give the same rows, to the bit, as reading each layer in each step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

import trustlens
from support.compiled import needs_compiler
from trustlens.optim import Lamb, Lars
from trustlens.recording.measuring import cached_plan, probe
from trustlens.recording.measuring.cached_plan import CachedPlan
from trustlens.recording.optimizers import Family, family_of

SHAPES = ((40, 20), (20, 40), (300,), (7,), (2, 3, 5, 5), (0, 3))
STEPS = 9

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.01),
    "AdamW, fused": lambda groups: torch.optim.AdamW(groups, lr=0.01, fused=True),
    "Adam, amsgrad": lambda groups: torch.optim.Adam(groups, lr=0.01, amsgrad=True),
    "RAdam": lambda groups: torch.optim.RAdam(groups, lr=0.01, weight_decay=0.1),
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.01),
    "SGD, momentum": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9),
    "Adagrad": lambda groups: torch.optim.Adagrad(groups, lr=0.01, lr_decay=0.1),
    "RMSprop": lambda groups: torch.optim.RMSprop(groups, lr=0.01, momentum=0.5),
}

YIELDING: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "Lamb": lambda groups: Lamb(groups, lr=0.01, weight_decay=0.1),
    "Lamb, decay first": lambda groups: Lamb(
        groups, lr=0.01, weight_decay=0.1, decay="first", debias="rate"
    ),
    "Lars": lambda groups: Lars(groups, lr=0.01, weight_decay=0.1),
    "Lars, no momentum": lambda groups: Lars(groups, lr=0.01, momentum=0.0),
}


class Training:
    """A few layers with gradients by chance; ``disturb`` is called before each step."""

    def __init__(
        self,
        make: Callable[[Any], torch.optim.Optimizer],
        dtype: torch.dtype,
        device: torch.device | None = None,
    ) -> None:
        self.chance = torch.Generator().manual_seed(0)
        self.parameters = [
            nn.Parameter(torch.randn(shape, generator=self.chance).to(device, dtype))
            for shape in SHAPES
        ]
        groups = [{"params": self.parameters[:3]}, {"params": self.parameters[3:], "lr": 0.002}]
        self.optimizer = make(groups)

    def train(self, disturb: Callable[[Training, int], None]) -> None:
        for step in range(1, STEPS + 1):
            for p in self.parameters:
                p.grad = torch.randn(p.shape, generator=self.chance).to(p)
            disturb(self, step)
            self.optimizer.step()


def nothing(training: Training, step: int) -> None:
    pass


def some_gradients_are_missing(training: Training, step: int) -> None:
    if step in {3, 4, 6}:
        training.parameters[step % 5].grad = None
    if step == 7:
        for p in training.parameters[:3]:
            p.grad = None


def weights_move_elsewhere(training: Training, step: int) -> None:
    if step == 5:
        training.parameters[0].data = training.parameters[0].data * 2


def weights_are_clipped_in_place(training: Training, step: int) -> None:
    training.parameters[0].data.clamp_(-0.5, 0.5)


def a_state_moves_elsewhere(training: Training, step: int) -> None:
    if step == 5:
        for state in training.optimizer.state.values():
            for value in state.values():
                if torch.is_tensor(value) and value.dim():
                    value.data = value.data.clone()


def the_step_counts_move_elsewhere(training: Training, step: int) -> None:
    if step == 5:
        for state in training.optimizer.state.values():
            if "step" in state:
                state["step"].data = state["step"].data.clone()


def a_state_is_another_tensor(training: Training, step: int) -> None:
    if step == 5:
        state = training.optimizer.state[training.parameters[1]]
        state.update({k: 2 * v for k, v in state.items() if torch.is_tensor(v) and v.dim()})


def a_state_is_emptied(training: Training, step: int) -> None:
    if step == 5:
        training.optimizer.state.pop(training.parameters[1], None)


def a_state_is_emptied_in_place(training: Training, step: int) -> None:
    if step == 5:
        training.optimizer.state[training.parameters[1]].clear()


def a_gradient_is_sparse(training: Training, step: int) -> None:
    if step in {4, 7}:
        grad = training.parameters[0].grad
        assert grad is not None
        training.parameters[0].grad = grad.to_sparse()


def a_checkpoint_is_loaded(training: Training, step: int) -> None:
    if step == 5:
        training.optimizer.load_state_dict(copy.deepcopy(training.optimizer.state_dict()))


def the_rate_changes(training: Training, step: int) -> None:
    training.optimizer.param_groups[0]["lr"] = 0.01 / step
    if step == 6:
        training.optimizer.param_groups[1]["weight_decay"] = 0.25


def the_rate_is_zero_for_a_while(training: Training, step: int) -> None:
    training.optimizer.param_groups[0]["lr"] = 0.0 if step in {4, 5} else 0.01


def a_gradient_lies_otherwise(training: Training, step: int) -> None:
    p = training.parameters[0]
    if step in {4, 5}:
        assert p.grad is not None
        p.grad = p.grad.mT.contiguous().mT
    if step == 6:
        assert p.grad is not None
        p.grad = torch.stack([p.grad, p.grad], dim=-1)[..., 0]


def a_group_is_added(training: Training, step: int) -> None:
    if step == 4:
        new = nn.Parameter(torch.ones(11, dtype=training.parameters[0].dtype))
        training.parameters.append(new)
        training.optimizer.add_param_group({"params": [new]})
        new.grad = torch.ones_like(new)


def uphill_from_now_on(training: Training, step: int) -> None:
    if step == 5:
        training.optimizer.param_groups[0]["maximize"] = True


DISTURBANCES = [
    nothing, some_gradients_are_missing, weights_move_elsewhere, weights_are_clipped_in_place,
    a_state_moves_elsewhere, the_step_counts_move_elsewhere, a_state_is_another_tensor,
    a_state_is_emptied, a_state_is_emptied_in_place, a_checkpoint_is_loaded,
    the_rate_changes, the_rate_is_zero_for_a_while, a_gradient_lies_otherwise, a_group_is_added,
    uphill_from_now_on,
]  # fmt: skip


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What each call of `CachedPlan.measure` came to."""
    measure, told = CachedPlan.measure, []

    def telling(self: CachedPlan, **options: Any) -> Any:
        measured = measure(self, **options)
        told.append(measured is not None)
        return measured

    monkeypatch.setattr(CachedPlan, "measure", telling)
    return told


def recorded(
    training: Training, directory: Path, disturb: Any, histograms_every: int = 0
) -> pd.DataFrame:
    with trustlens.record(training.optimizer, directory, histograms_every=histograms_every):
        training.train(disturb)
    return trustlens.open_run(directory).layers()


CASES = [(name, disturb) for name in OPTIMIZERS for disturb in DISTURBANCES]
CASES += [("SGD", a_gradient_is_sparse)]  # most others take no sparse gradients


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "disturb"), CASES)
def test_the_rows_are_those_of_looking_at_each_layer(
    name: str, disturb: Any, dtype: torch.dtype, planned: list[bool], tmp_path: Path
) -> None:
    rows = recorded(Training(OPTIMIZERS[name], dtype), tmp_path / "planned", disturb)
    assert planned.count(True) >= 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CachedPlan, "of", lambda *_, **__: None)
        looked_at = recorded(Training(OPTIMIZERS[name], dtype), tmp_path / "looked at", disturb)
    pd.testing.assert_frame_equal(rows, looked_at, check_exact=True)
    assert len(rows) >= STEPS * len(SHAPES)


@needs_compiler
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("disturb", DISTURBANCES)
def test_elements_are_counted_as_when_looking_at_each_layer(
    disturb: Any, every: int, planned: list[bool], tmp_path: Path
) -> None:
    make = OPTIMIZERS["AdamW, fused"]
    training = Training(make, torch.float32)
    rows = recorded(training, tmp_path / "planned", disturb, every)
    assert planned.count(True) >= 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CachedPlan, "of", lambda *_, **__: None)
        again = Training(make, torch.float32)
        looked_at = recorded(again, tmp_path / "looked at", disturb, every)
    pd.testing.assert_frame_equal(rows, looked_at, check_exact=True)
    one, other = (
        trustlens.open_run(tmp_path / name).histograms() for name in ("planned", "looked at")
    )
    pd.testing.assert_frame_equal(one, other)
    assert set(one["step"]) == set(range(1, STEPS + 1, every))


def without_sums(family: Family) -> Family:
    """The same optimizers, whose weights are copied and whose sums are made as those of others."""
    return replace(family, provides_sums=False, provides_weights_before=False)


@needs_compiler
@pytest.mark.parametrize("disturb", [d for d in DISTURBANCES if d is not uphill_from_now_on])
@pytest.mark.parametrize("name", YIELDING)
def test_the_rows_of_an_optimizer_that_makes_its_sums(
    name: str, disturb: Any, planned: list[bool], tmp_path: Path
) -> None:
    """They are those of looking at each layer, but for the order of additions, and say more."""
    make = YIELDING[name]
    rows = recorded(Training(make, torch.float32), tmp_path / "yielded", disturb)
    assert planned.count(True) >= 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "family_of", lambda optimizer: without_sums(family_of(optimizer)))
        looked_at = recorded(Training(make, torch.float32), tmp_path / "looked at", disturb)
    sizes = rows["weight_norm"] * (rows["weight_norm"] + rows["undecayed_norm"].fillna(0))
    for column in rows:
        one, other = rows[column], looked_at[column]
        if column == "layer":
            assert (one == other).all()
            continue
        assert not (one.isna() & other.notna()).any()
        bound = 1e-6 * sizes if "dot" in column else 1e-6 * rows["weight_norm"]
        off = (one - other).abs().fillna(0) - 2e-5 * other.abs().fillna(0)
        assert (off <= (bound if "update" in column or "dot" in column else 0)).all(), column


@needs_compiler
def test_an_undisturbed_training_is_looked_at_twice(planned: list[bool], tmp_path: Path) -> None:
    recorded(Training(OPTIMIZERS["AdamW"], torch.float32), tmp_path / "run", nothing)
    assert planned == [True] * (STEPS - 2)


@needs_compiler
def test_a_closure_is_no_disturbance(planned: list[bool], tmp_path: Path) -> None:
    training = Training(OPTIMIZERS["AdamW"], torch.float32)
    with trustlens.record(training.optimizer, tmp_path / "run"):
        for _ in range(5):

            def closure() -> float:
                for p in training.parameters:
                    p.grad = torch.ones_like(p)
                return 0.0

            training.optimizer.step(closure)
    assert planned == [True] * 3


@needs_compiler
@pytest.mark.parametrize("error", [KeyError, RuntimeError, ValueError])
def test_an_error_in_the_fast_path_stops_the_recording(
    error: type[Exception],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is reported like any other; reading each layer instead would hide it for ever."""
    alone = Training(OPTIMIZERS["AdamW"], torch.float32)
    alone.train(nothing)

    def failing(*_: Any, **__: Any) -> Any:
        raise error("injected")

    def disturb(_: Training, step: int) -> None:
        if step == 5:
            monkeypatch.setattr(cached_plan, "build_measurement", failing)

    training = Training(OPTIMIZERS["AdamW"], torch.float32)
    with trustlens.record(training.optimizer, tmp_path / "run"):
        training.train(disturb)
    (warning,) = caplog.records
    assert warning.levelname == "WARNING"
    assert f"{error.__name__}: " in warning.getMessage()
    assert "injected" in warning.getMessage()
    run = trustlens.open_run(tmp_path / "run")
    assert set(run.layers()["step"]) == {1, 2, 3, 4}
    assert "injected" in (run.info.recording.stopped or "")
    for own, other in zip(training.parameters, alone.parameters, strict=True):
        assert torch.equal(own, other)
