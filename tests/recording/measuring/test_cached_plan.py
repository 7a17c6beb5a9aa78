"""Cached plans give bit-identical rows to reading each layer in each step."""

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
from tests.support.compiled import needs_compiler
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

SUMS_PROVIDED: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "Lamb": lambda groups: Lamb(groups, lr=0.01, weight_decay=0.1),
    "Lamb, decay first": lambda groups: Lamb(
        groups, lr=0.01, weight_decay=0.1, decay="first", debias="rate"
    ),
    "Lars": lambda groups: Lars(groups, lr=0.01, weight_decay=0.1),
    "Lars, no momentum": lambda groups: Lars(groups, lr=0.01, momentum=0.0),
}


class Training:
    """A few layers with random gradients; ``disturb`` is called before each step."""

    def __init__(
        self,
        make: Callable[[Any], torch.optim.Optimizer],
        dtype: torch.dtype,
        device: torch.device | None = None,
    ) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.parameters = [
            nn.Parameter(torch.randn(shape, generator=self.generator).to(device, dtype))
            for shape in SHAPES
        ]
        groups = [{"params": self.parameters[:3]}, {"params": self.parameters[3:], "lr": 0.002}]
        self.optimizer = make(groups)

    def train(self, disturb: Callable[[Training, int], None]) -> None:
        for step in range(1, STEPS + 1):
            for p in self.parameters:
                p.grad = torch.randn(p.shape, generator=self.generator).to(p)
            disturb(self, step)
            self.optimizer.step()


def no_change(training: Training, step: int) -> None:
    pass


def some_gradients_are_missing(training: Training, step: int) -> None:
    if step in {3, 4, 6}:
        training.parameters[step % 5].grad = None
    if step == 7:
        for p in training.parameters[:3]:
            p.grad = None


def weights_get_a_new_address(training: Training, step: int) -> None:
    if step == 5:
        training.parameters[0].data = training.parameters[0].data * 2


def weights_are_clipped_in_place(training: Training, step: int) -> None:
    training.parameters[0].data.clamp_(-0.5, 0.5)


def states_get_new_addresses(training: Training, step: int) -> None:
    if step == 5:
        for state in training.optimizer.state.values():
            for value in state.values():
                if torch.is_tensor(value) and value.dim():
                    value.data = value.data.clone()


def step_counts_get_new_addresses(training: Training, step: int) -> None:
    if step == 5:
        for state in training.optimizer.state.values():
            if "step" in state:
                state["step"].data = state["step"].data.clone()


def a_state_tensor_is_replaced(training: Training, step: int) -> None:
    if step == 5:
        state = training.optimizer.state[training.parameters[1]]
        state.update({k: 2 * v for k, v in state.items() if torch.is_tensor(v) and v.dim()})


def a_state_is_removed(training: Training, step: int) -> None:
    if step == 5:
        training.optimizer.state.pop(training.parameters[1], None)


def a_state_is_cleared(training: Training, step: int) -> None:
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


def the_rate_is_zero_in_some_steps(training: Training, step: int) -> None:
    training.optimizer.param_groups[0]["lr"] = 0.0 if step in {4, 5} else 0.01


def a_gradient_has_other_strides(training: Training, step: int) -> None:
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


def the_optimizer_maximizes_from_now_on(training: Training, step: int) -> None:
    if step == 5:
        training.optimizer.param_groups[0]["maximize"] = True


DISTURBANCES = [
    no_change, some_gradients_are_missing, weights_get_a_new_address, weights_are_clipped_in_place,
    states_get_new_addresses, step_counts_get_new_addresses, a_state_tensor_is_replaced,
    a_state_is_removed, a_state_is_cleared, a_checkpoint_is_loaded,
    the_rate_changes, the_rate_is_zero_in_some_steps, a_gradient_has_other_strides,
    a_group_is_added, the_optimizer_maximizes_from_now_on,
]  # fmt: skip


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each call of `CachedPlan.measure`, whether it measured the step."""
    measure, succeeded = CachedPlan.measure, []

    def observed(self: CachedPlan, **options: Any) -> Any:
        measured = measure(self, **options)
        succeeded.append(measured is not None)
        return measured

    monkeypatch.setattr(CachedPlan, "measure", observed)
    return succeeded


def recorded(
    training: Training, directory: Path, disturb: Any, histograms_every: int = 0
) -> pd.DataFrame:
    with trustlens.record(training.optimizer, directory, histograms_every=histograms_every):
        training.train(disturb)
    return trustlens.open_run(directory).layers()


CASES = [(name, disturb) for name in OPTIMIZERS for disturb in DISTURBANCES]
CASES += [("SGD", a_gradient_is_sparse)]  # most others accept no sparse gradients


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "disturb"), CASES)
def test_a_plan_gives_the_same_rows_as_reading_each_layer(
    name: str, disturb: Any, dtype: torch.dtype, planned: list[bool], tmp_path: Path
) -> None:
    rows = recorded(Training(OPTIMIZERS[name], dtype), tmp_path / "planned", disturb)
    assert planned.count(True) >= 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CachedPlan, "of", lambda *_, **__: None)
        read_one_by_one = recorded(Training(OPTIMIZERS[name], dtype), tmp_path / "read", disturb)
    pd.testing.assert_frame_equal(rows, read_one_by_one, check_exact=True)
    assert len(rows) >= STEPS * len(SHAPES)


@needs_compiler
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("disturb", DISTURBANCES)
def test_a_plan_gives_the_same_histograms_as_reading_each_layer(
    disturb: Any, every: int, planned: list[bool], tmp_path: Path
) -> None:
    make = OPTIMIZERS["AdamW, fused"]
    training = Training(make, torch.float32)
    rows = recorded(training, tmp_path / "planned", disturb, every)
    assert planned.count(True) >= 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CachedPlan, "of", lambda *_, **__: None)
        again = Training(make, torch.float32)
        read_one_by_one = recorded(again, tmp_path / "read", disturb, every)
    pd.testing.assert_frame_equal(rows, read_one_by_one, check_exact=True)
    one, other = (trustlens.open_run(tmp_path / name).histograms() for name in ("planned", "read"))
    pd.testing.assert_frame_equal(one, other)
    assert set(one["step"]) == set(range(1, STEPS + 1, every))


def without_sums(family: Family) -> Family:
    """Return a family whose optimizers are measured like those that compute no sums themselves."""
    return replace(family, provides_sums=False, provides_weights_before=False)


@needs_compiler
@pytest.mark.parametrize(
    "disturb", [d for d in DISTURBANCES if d is not the_optimizer_maximizes_from_now_on]
)
@pytest.mark.parametrize("name", SUMS_PROVIDED)
def test_sums_of_the_fused_step_equal_those_of_the_recorder(
    name: str, disturb: Any, planned: list[bool], tmp_path: Path
) -> None:
    """They differ by the order of additions, and fewer of them are null."""
    make = SUMS_PROVIDED[name]
    rows = recorded(Training(make, torch.float32), tmp_path / "provided", disturb)
    assert planned.count(True) >= 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "family_of", lambda optimizer: without_sums(family_of(optimizer)))
        read_one_by_one = recorded(Training(make, torch.float32), tmp_path / "read", disturb)
    sizes = rows["weight_norm"] * (rows["weight_norm"] + rows["undecayed_norm"].fillna(0))
    for column in rows:
        one, other = rows[column], read_one_by_one[column]
        if column == "layer":
            assert (one == other).all()
            continue
        assert not (one.isna() & other.notna()).any()
        bound = 1e-6 * sizes if "dot" in column else 1e-6 * rows["weight_norm"]
        off = (one - other).abs().fillna(0) - 2e-5 * other.abs().fillna(0)
        assert (off <= (bound if "update" in column or "dot" in column else 0)).all(), column


@needs_compiler
def test_only_the_first_two_steps_of_an_undisturbed_training_are_read(
    planned: list[bool], tmp_path: Path
) -> None:
    recorded(Training(OPTIMIZERS["AdamW"], torch.float32), tmp_path / "run", no_change)
    assert planned == [True] * (STEPS - 2)


@needs_compiler
def test_a_closure_does_not_prevent_planning(planned: list[bool], tmp_path: Path) -> None:
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
    """It is reported like any other error. Reading each layer instead would hide it."""
    alone = Training(OPTIMIZERS["AdamW"], torch.float32)
    alone.train(no_change)

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
