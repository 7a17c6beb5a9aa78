"""A resumed run has the same rows as a run without an interruption."""

from __future__ import annotations

import copy
import logging
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.stateful import Stateful

import trustlens
from tests.support.interrupted import OPTIMIZERS, OPTIONS, Job, assert_same, uninterrupted
from trustlens.store.writer import RunWriter


@pytest.fixture(params=[False, True], ids=["one file", "many files"])
def _small_segments(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setitem(RunWriter.__init__.__kwdefaults__, "segment_rows", 5)


@pytest.mark.usefixtures("_small_segments")
@pytest.mark.parametrize("name", ["AdamW", "SGD", "SGD, momentum", "Lamb"])
def test_resuming_with_the_recorders_state(name: str, tmp_path: Path) -> None:
    first = Job(OPTIMIZERS[name])
    recorder = first.record(tmp_path / "run", config={"lr": 1}, name="first", **OPTIONS)
    first.train(8, recorder)
    saved, state = first.checkpoint(), recorder.state_dict()
    first.train(12, recorder)
    recorder.close()

    second = Job(OPTIMIZERS[name])
    recorder = second.record(tmp_path / "run", resume=True, **OPTIONS)
    assert recorder.step == 12
    assert trustlens.open_run(tmp_path / "run").status == "recording"
    second.load(saved)
    recorder.load_state_dict(state)
    assert recorder.step == 8
    second.train(20, recorder)
    recorder.close()
    assert_same(tmp_path / "run", uninterrupted(tmp_path / "uninterrupted", OPTIMIZERS[name]))
    run = trustlens.open_run(tmp_path / "run")
    assert (run.status, run.name, run.info.config) == ("closed", "first", {"lr": 1})


@pytest.mark.usefixtures("_small_segments")
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", ["AdamW", "AdamW, fused", "Lamb"])
@pytest.mark.parametrize("at", [5, 8])
def test_resuming_from_the_optimizers_own_step_count(
    name: str, scaled: bool, at: int, tmp_path: Path
) -> None:
    """Also with steps that gradient scaling skipped before and after the checkpoint."""
    first = Job(OPTIMIZERS[name], scaled=scaled)
    with first.record(tmp_path / "run", **OPTIONS) as recorder:
        first.train(at, recorder)
        saved = first.checkpoint()
        first.train(12, recorder)
    second = Job(OPTIMIZERS[name], scaled=scaled)
    with second.record(tmp_path / "run", resume=True, **OPTIONS) as recorder:
        assert recorder.step == 12
        second.load(saved)
        assert recorder.state_dict() == {"step": at, "own": [at]}  # before the first step
        second.train(20, recorder)
        assert recorder.step == 20
    assert_same(
        tmp_path / "run", uninterrupted(tmp_path / "uninterrupted", OPTIMIZERS[name], scaled=scaled)
    )


def test_resuming_with_the_recorders_state_and_then_without_it(tmp_path: Path) -> None:
    make, checkpoints = OPTIMIZERS["AdamW"], [(8, 11), (12, 16), (17, 20)]
    saved, state = None, None
    for resumed, (at, until) in enumerate(checkpoints):
        job = Job(make, scaled=True)
        with job.record(tmp_path / "run", resume=True, **OPTIONS) as recorder:
            if saved is not None:
                job.load(saved)
            if resumed == 1:
                recorder.load_state_dict(state)
            job.train(at, recorder)
            saved, state = job.checkpoint(), recorder.state_dict()
            job.train(until, recorder)
    assert_same(tmp_path / "run", uninterrupted(tmp_path / "uninterrupted", make, scaled=True))


@pytest.mark.parametrize("name", ["SGD", "SGD, momentum"])
def test_an_optimizer_without_a_step_count_resumes_after_the_last_step(
    name: str, tmp_path: Path
) -> None:
    first = Job(OPTIMIZERS[name])
    with first.record(tmp_path / "run", **OPTIONS) as recorder:
        first.train(12, recorder)
    second = Job(OPTIMIZERS[name])
    second.load(first.checkpoint())
    with second.record(tmp_path / "run", resume=True, **OPTIONS) as recorder:
        second.train(20, recorder)
    assert_same(tmp_path / "run", uninterrupted(tmp_path / "uninterrupted", OPTIMIZERS[name]))
    assert not (tmp_path / "run" / ".replaced").exists()


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", ["AdamW", "AdamW, fused", "SGD, momentum", "Lamb"])
def test_a_job_stopped_before_its_first_checkpoint_starts_again(
    name: str, scaled: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for until in (1, 3, 20):
        job = Job(OPTIMIZERS[name], scaled=scaled)
        with job.record(tmp_path / "run", resume=True, **OPTIONS) as recorder:
            job.train(until, recorder)
    assert_same(
        tmp_path / "run", uninterrupted(tmp_path / "uninterrupted", OPTIMIZERS[name], scaled=scaled)
    )
    assert len(caplog.records) == 2  # one for each time that all rows are removed


def test_a_run_whose_optimizer_had_steps_before_it(tmp_path: Path) -> None:
    first = Job()
    first.train(5)
    with first.record(tmp_path / "run") as recorder:
        first.train(9, recorder)
        saved = first.checkpoint()
        first.train(11, recorder)
    second = Job()
    with second.record(tmp_path / "run", resume=True) as recorder:
        second.load(saved)
        second.train(14, recorder)
        assert recorder.step == 9
    third = Job()
    third.train(5)
    saved = third.checkpoint()
    third = Job()
    with third.record(tmp_path / "uninterrupted") as recorder:
        third.load(saved)  # only the checkpoint says how many steps it has done
        third.train(14, recorder)
    assert_same(tmp_path / "run", tmp_path / "uninterrupted")
    with Job().record(tmp_path / "uninterrupted", resume=True):
        recorded = trustlens.open_run(tmp_path / "uninterrupted").info.recording
        assert recorded.optimizer_steps_before == (5,)


PROCESS = """
    import os, sys, torch
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from tests.support.interrupted import OPTIONS, OPTIMIZERS, Job
    from trustlens.store.writer import RunWriter
    folder, until = Path(sys.argv[2]), int(sys.argv[3])
    RunWriter.__init__.__kwdefaults__["segment_rows"] = 7
    for name in ("AdamW", "SGD"):
        job, saved = Job(OPTIMIZERS[name]), folder / f"{name}.pt"
        recorder = job.record(folder / name, resume=True, **OPTIONS)
        if saved.exists():
            state = torch.load(saved)
            job.load(state["job"])
            recorder.load_state_dict(state["recorder"])
        job.train(until - 2, recorder)
        torch.save({"job": job.checkpoint(), "recorder": recorder.state_dict()}, saved)
        job.train(until, recorder)
        recorder.flush()
        job.train(until + 1, recorder)
    os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_process_that_is_killed_twice(tmp_path: Path) -> None:
    for until in (6, 11):
        arguments = [Path(__file__).parents[1], tmp_path, until]
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(PROCESS), *map(str, arguments)], check=False
        )
        assert done.returncode == -signal.SIGKILL
    for name in ("AdamW", "SGD"):
        run = tmp_path / name
        assert (run / ".lock").exists()  # but no process holds it
        job = Job(OPTIMIZERS[name])
        state = torch.load(tmp_path / f"{name}.pt")
        with job.record(run, resume=True, **OPTIONS) as recorder:
            job.load(state["job"])
            recorder.load_state_dict(state["recorder"])
            job.train(20, recorder)
        assert_same(run, uninterrupted(tmp_path / "uninterrupted" / name, OPTIMIZERS[name]))
        assert not (run / ".lock").exists()


@pytest.mark.usefixtures("_small_segments")
def test_a_rollback_during_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    job = Job()
    with job.record(tmp_path / "run", **OPTIONS) as recorder:
        job.train(8, recorder)
        saved, state = job.checkpoint(), recorder.state_dict()
        job.train(13, recorder)
        job.load(saved)
        recorder.load_state_dict(state)
        job.train(20, recorder)
    assert_same(tmp_path / "run", uninterrupted(tmp_path / "uninterrupted", OPTIMIZERS["AdamW"]))
    (record,) = caplog.records
    assert "resumes after step 8" in record.message
    assert ".replaced/000001" in record.message


def test_several_optimizers_resume_each_from_its_own_step(tmp_path: Path) -> None:
    def train(directory: Path, stops: tuple[int, ...]) -> Path:
        saved: dict[str, Any] = {}
        for stop in stops:
            torch.manual_seed(0)
            often, seldom = (nn.Parameter(torch.randn(3)) for _ in range(2))
            optimizers = [torch.optim.Adam([often]), torch.optim.SGD([seldom], lr=0.1)]
            recorder = trustlens.record(optimizers, directory, resume=True)
            if saved:
                often.data, seldom.data = saved["weights"]
                for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
                    optimizer.load_state_dict(state)
                recorder.load_state_dict(saved["recorder"])
            for step in range(saved.get("done", 0) + 1, stop + 1):
                for p, optimizer in zip((often, seldom), optimizers, strict=True):
                    if p is often or step % 3 == 0:
                        p.grad = p.detach().clone()
                        optimizer.step()
                recorder.log(step=step)
                if step == 8:
                    saved = copy.deepcopy(
                        {
                            "weights": [often.data, seldom.data],
                            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                            "recorder": recorder.state_dict(),
                            "done": step,
                        }
                    )
            recorder.close()
        return directory

    run = train(tmp_path / "run", (13, 18))
    assert_same(run, train(tmp_path / "uninterrupted", (18,)))
    layers = trustlens.open_run(run).layers()
    seldom = layers[layers["layer"] == "optimizer1.group0.param0"]
    assert seldom["step"].tolist() == [1, 2, 3, 4, 5, 6]


def test_optimizers_without_a_step_count_follow_one_that_has_it(tmp_path: Path) -> None:
    def make(p: Iterator[nn.Parameter]) -> list[torch.optim.Optimizer]:
        first, *rest = p
        return [torch.optim.SGD([first], lr=0.1), torch.optim.AdamW(rest)]

    def train(job: Any, recorder: Any, until: int) -> None:
        while job.done < until:
            job.done += 1
            job.model(torch.full((1, 6), float(job.done))).square().sum().backward()
            for optimizer in job.optimizer:
                optimizer.step()

    first = Job(make)  # type: ignore[arg-type]
    with first.record(tmp_path / "run") as recorder:
        train(first, recorder, 5)
        saved = copy.deepcopy([each.state_dict() for each in first.optimizer])  # type: ignore[attr-defined]
        train(first, recorder, 9)
    second = Job(make)  # type: ignore[arg-type]
    with second.record(tmp_path / "run", resume=True) as recorder:
        for optimizer, state in zip(second.optimizer, saved, strict=True):  # type: ignore[call-overload]
            optimizer.load_state_dict(state)
        train(second, recorder, 2)
        assert recorder.step == 7
    layers = trustlens.open_run(tmp_path / "run").layers()
    assert (
        layers.groupby("layer", observed=True)["step"].apply(list).tolist()
        == [[1, 2, 3, 4, 5, 6, 7]] * 4
    )


def test_several_optimizers_without_a_step_count_resume_after_their_own_last_steps(
    tmp_path: Path,
) -> None:
    def train(until: int) -> None:
        layers = [nn.Parameter(torch.ones(2)) for _ in range(2)]
        often, seldom = (torch.optim.SGD([layer], lr=0.1, momentum=0.9) for layer in layers)
        for optimizer, layer in zip((often, seldom), layers, strict=True):
            optimizer.state[layer]["momentum_buffer"] = torch.ones(
                2
            )  # as if loaded from a checkpoint
        with trustlens.record([often, seldom], tmp_path, resume=True):
            for step in range(until - 6, until):
                often.step()
                if step % 2:
                    seldom.step()

    train(6)
    train(12)
    layers = trustlens.open_run(tmp_path).layers()
    steps = layers.groupby("layer", observed=True)["step"].apply(list).tolist()
    assert steps == [[*range(1, 13)], [*range(1, 7)]]


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_the_recorder_is_a_stateful_of_torch_distributed_checkpoint(tmp_path: Path) -> None:
    first = Job()
    with first.record(tmp_path / "run") as recorder:
        assert isinstance(recorder, Stateful)
        first.train(4, recorder)
        saved = first.checkpoint()
        dcp.save({"recorder": recorder}, checkpoint_id=tmp_path / "checkpoint")
        first.train(7, recorder)
    second = Job()
    with second.record(tmp_path / "run", resume=True) as recorder:
        second.load(saved)
        dcp.load({"recorder": recorder}, checkpoint_id=tmp_path / "checkpoint")
        assert recorder.step == 4
        second.train(7, recorder)
    uninterrupted = Job()
    with uninterrupted.record(tmp_path / "uninterrupted") as recorder:
        uninterrupted.train(7, recorder)
    assert_same(tmp_path / "run", tmp_path / "uninterrupted")


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_the_step_of_torchs_checkpointing_is_not_recorded(name: str, tmp_path: Path) -> None:
    """It creates the state of a new optimizer with a step of rate 0, which calls the hooks."""
    first = Job(OPTIMIZERS[name])
    with first.record(tmp_path / "run", resume=True) as recorder:
        get_optimizer_state_dict(first.model, first.optimizer)
        assert recorder.step == 0
        first.train(5, recorder)
        saved, parts = first.checkpoint(), (first.model, first.optimizer)
        state = copy.deepcopy(get_optimizer_state_dict(*parts))
        first.train(7 if name == "AdamW" else 5, recorder)
    second = Job(OPTIMIZERS[name])
    with second.record(tmp_path / "run", resume=True) as recorder:
        parts = (second.model, second.optimizer)
        set_optimizer_state_dict(*parts, optim_state_dict=state)
        second.model.load_state_dict(saved["job"][0])
        second.done = 5
        second.train(9, recorder)
        assert recorder.step == 9
    uninterrupted = Job(OPTIMIZERS[name])
    get_optimizer_state_dict(
        uninterrupted.model, uninterrupted.optimizer
    )  # sets Adam's step count to 1
    with uninterrupted.record(tmp_path / "uninterrupted") as recorder:
        uninterrupted.train(9, recorder)
    assert_same(tmp_path / "run", tmp_path / "uninterrupted")
