"""Training is bit-identical to training without the recorder, whatever fails in the recorder."""

from __future__ import annotations

import copy
import errno
import gc
import io
import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

import trustlens
from trustlens.optim import Lamb
from trustlens.recording import recorder
from trustlens.recording.hooks import optimizer as hooks
from trustlens.recording.measuring import layer_reader, measurement
from trustlens.recording.measuring.cached_plan import CachedPlan
from trustlens.recording.measuring.measurement import Measurement
from trustlens.recording.measuring.probe import OptimizerProbe
from trustlens.recording.measuring.snapshots import WeightSnapshots
from trustlens.recording.statistics.cpu_backend import CpuBackend
from trustlens.recording.writing import sink as output
from trustlens.recording.writing.writer_thread import WriterThread
from trustlens.store import table_writer as table
from trustlens.store import writer
from trustlens.store.writer import RunWriter

BEFORE = 3
"""Number of steps before a failure."""


class Training:
    """A training with dropout, a scaler, a schedule, an added group and a skipped step."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 — the global state, which a recorder could change
        self.model = nn.Sequential(nn.Linear(7, 13), nn.Dropout(0.5), nn.Linear(13, 2))
        self.head = nn.Linear(2, 2)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.scaler = GradScaler("cpu", init_scale=64.0)
        self.schedule = torch.optim.lr_scheduler.LinearLR(self.optimizer, total_iters=5)
        self.step = 0

    def train(self, steps: int, log: Callable[..., None] = lambda **_: None) -> None:
        for _ in range(steps):
            self.step += 1
            if self.step == BEFORE + 2:
                self.optimizer.add_param_group({"params": list(self.head.parameters())})
            self.optimizer.zero_grad()
            loss = self.head(self.model(torch.randn(4, 7))).square().mean()
            self.scaler.scale(loss * (float("inf") if self.step == BEFORE + 3 else 1)).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.schedule.step()
            log(loss=loss)

    def everything(self) -> bytes:
        """Return the state of the training and of all random generators, as bytes."""
        parts: list[Any] = [p.detach() for p in self.model.parameters()]
        parts += [p.detach() for p in self.head.parameters()]
        parts += [self.optimizer.state_dict(), self.scaler.state_dict(), self.schedule.state_dict()]
        parts += [torch.get_rng_state(), random.getstate(), np.random.get_state()]  # noqa: NPY002
        return pickle.dumps(_plain(parts))


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return [(repr(key), _plain(each)) for key, each in value.items()]
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return repr(value)


@pytest.fixture(scope="module")
def unrecorded() -> bytes:
    training = Training()
    training.train(BEFORE + 7)
    return training.everything()


@pytest.fixture(autouse=True)
def _no_hook_is_left() -> Iterator[None]:
    step = GradScaler.step
    yield
    assert GradScaler.step is step


class Listening:
    """A listener that ignores its rows."""

    def on_layers(self, table: Any) -> None: ...
    def on_metrics(self, table: Any) -> None: ...
    def on_histograms(self, table: Any) -> None: ...
    def close(self) -> None: ...


def _raising(error: BaseException, first: Callable[[], Any] = lambda: None) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        first()
        raise copy.copy(error)  # a raised error refers to all local variables

    return fail


STAGES: dict[str, tuple[Any, str]] = {
    # before the step
    "find the layers of a new group": (recorder, "find_layers"),
    "add them to run.json": (writer, "write_info"),
    "copy the weights": (WeightSnapshots, "take"),
    # after it
    "read a layer": (layer_reader, "Stepped"),
    "measure": (OptimizerProbe, "_backend"),
    "measure again": (CachedPlan, "measure"),
    "plan": (CachedPlan, "of"),
    "count elements": (CpuBackend, "measure_and_count"),
    "send to the host": (measurement, "send"),
    "make a record": (recorder, "StepRecord"),
    "queue it": (WriterThread, "put"),
    # a step that the scaler skipped
    "unwrap the optimizer": (hooks, "unwrapped"),
    "ask the scaler": (hooks, "found_inf"),
    # on the writer thread
    "collect": (WriterThread, "_collect"),
    "make tables": (output, "tables"),
    "append": (RunWriter, "append"),
    "flush": (RunWriter, "flush"),
    # at the end
    "seal": (table, "write_sealed"),
    "close": (RunWriter, "close"),
    # failures that do not stop the recording
    "take a metric": (recorder, "host_scalar"),
    "a listener": (Listening, "on_layers"),
    "close a listener": (Listening, "close"),
}

RECORDING_CONTINUES = {"take a metric", "a listener", "close a listener"}
NOT_STORED = {"add them to run.json", "seal", "close"}  # run.json cannot be written


@pytest.mark.parametrize(
    "error",
    [RuntimeError("injected"), OSError(errno.ENOSPC, "injected"), MemoryError("injected")],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("stage", STAGES)
def test_a_failure_in_any_stage_logs_one_warning_and_does_not_change_the_training(  # noqa: PLR0917
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    unrecorded: bytes,
    stage: str,
    error: Exception,
) -> None:
    failed = []
    fail = _raising(error, lambda: failed.append(1))

    training = Training()
    with trustlens.record(
        training.optimizer, tmp_path, histograms_every=7, listeners=[Listening()]
    ) as recording:

        def log(**values: Any) -> None:
            recording.log(**values)
            recording.flush()

        training.train(BEFORE, log)
        monkeypatch.setattr(*STAGES[stage], fail)
        training.train(7, log)
    assert failed, "the stage was not reached"
    assert training.everything() == unrecorded
    assert not training.optimizer._optimizer_step_pre_hooks
    assert not training.optimizer._optimizer_step_post_hooks
    assert [(record.name, record.levelname) for record in caplog.records] == [
        ("trustlens", "WARNING")
    ]
    assert "injected" in caplog.text
    monkeypatch.undo()
    run = trustlens.open_run(tmp_path)
    assert run.matrix("nonfinite").index[:BEFORE].tolist() == [1, 2, 3]
    assert run.layers(layers=["group0.param0"])["weight_norm"].notna().all()
    assert run.metrics()["value"].notna().sum() >= BEFORE
    if stage in RECORDING_CONTINUES:
        assert run.matrix("nonfinite").index.tolist() == [1, 2, 3, 4, 5, 7, 8, 9, 10]
        assert run.info.recording.stopped is None
    elif stage not in NOT_STORED:
        assert "injected" in (run.info.recording.stopped or "")


def test_a_failure_during_the_closure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def trained(directory: Path | None) -> Tensor:
        weight = nn.Parameter(torch.linspace(1, 2, 6))
        optimizer = torch.optim.LBFGS([weight], max_iter=4)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = (weight**4).sum()
            loss.backward()
            return loss

        with nullcontext() if directory is None else trustlens.record(optimizer, directory):
            for _ in range(3):
                optimizer.step(closure)
        return weight.detach()

    monkeypatch.setattr(WeightSnapshots, "take_grads", _raising(RuntimeError("injected")))
    assert torch.equal(trained(None), trained(tmp_path))
    assert len(caplog.records) == 1
    assert "injected" in caplog.text


def test_a_keyboard_interrupt_in_a_hook_reaches_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training()
    with trustlens.record(training.optimizer, tmp_path):
        training.train(1)
        for stage in ("copy the weights", "measure"):
            with monkeypatch.context() as patch:
                patch.setattr(*STAGES[stage], _raising(KeyboardInterrupt()))
                with pytest.raises(KeyboardInterrupt):
                    training.optimizer.step()
        training.optimizer.step()
    run = trustlens.open_run(tmp_path)
    assert run.info.recording.stopped is None
    weights = run.matrix("weight_norm")["group0.param0"]
    assert weights.notna().all()
    assert not training.optimizer._optimizer_step_pre_hooks


def _count_held(shape: tuple[int, ...] = (13, 7)) -> int:
    """Count the existing tensors of a layer's shape and the measurements."""
    gc.collect()
    return sum(
        type(each) is Measurement or (type(each) is Tensor and tuple(each.shape) == shape)
        for each in gc.get_objects()
    )


@pytest.mark.parametrize("stage", ["measure again", "make tables"])
def test_memory_is_freed_after_recording_has_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    training = Training()
    training.train(1)
    alone = _count_held()
    # With histograms the weights are copied in each step.
    with trustlens.record(training.optimizer, tmp_path, histograms_every=1) as recording:
        training.train(1)
        assert _count_held() > alone
        monkeypatch.setattr(*STAGES[stage], _raising(RuntimeError("injected")))
        training.optimizer.step()
        recording.flush()
        assert _count_held() == alone


class Whole(torch.optim.SGD):
    """An optimizer whose copies and pickles include all attributes, also its hooks."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()


def _saved(optimizer: Any) -> Any:
    file = io.BytesIO()
    torch.save(optimizer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "twin_of",
    [copy.copy, copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer)), _saved],
    ids=["copy", "deepcopy", "pickle", "torch.save"],
)
@pytest.mark.parametrize("kind", [torch.optim.AdamW, Lamb, Whole])
def test_a_copy_of_a_recorded_optimizer_is_not_recorded(
    tmp_path: Path, kind: Any, twin_of: Callable[[Any], Any]
) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = kind([weight], lr=0.1)

    def step(stepping: torch.optim.Optimizer) -> None:
        for parameter in stepping.param_groups[0]["params"]:
            parameter.grad = torch.ones(3)
        stepping.step()

    step(optimizer)
    plain = twin_of(optimizer)
    with trustlens.record(optimizer, tmp_path / "a") as recording:
        twin = twin_of(optimizer)
        assert _plain(twin.state_dict()) == _plain(plain.state_dict())
        step(optimizer)
        step(twin)
        with trustlens.record(twin, tmp_path / "b") as other:
            step(twin)
            step(optimizer)
        step(twin)
        assert recording.step == 2
        assert other.step == 1
    assert trustlens.open_run(tmp_path / "a").matrix("nonfinite").index.tolist() == [1, 2]
    assert trustlens.open_run(tmp_path / "b").matrix("nonfinite").index.tolist() == [1]
