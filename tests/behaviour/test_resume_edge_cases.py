"""Edge cases of resuming: checkpoints that do not fit, errors, replaced files, reported gaps."""

from __future__ import annotations

import copy
import errno
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

import trustlens
from tests.support.interrupted import Job, contents
from trustlens.errors import RunError, UsageError
from trustlens.recording import resume
from trustlens.store.reader import fingerprint
from trustlens.store.repair import repair
from trustlens.store.segments import rollback as segment_rollback
from trustlens.store.writer import RunWriter


def test_removed_rows_are_kept_where_no_reader_looks(tmp_path: Path) -> None:
    job, run = Job(), tmp_path / "runs" / "run"
    with job.record(run) as recorder:
        job.train(6, recorder)
        recorder.flush()
        before = contents(run)
        recorder.load_state_dict({"step": 2})
        recorder.flush()
        version = fingerprint(run)
        for kept in (run / ".replaced" / "000001").rglob("*.parquet"):
            kept.touch()
        assert fingerprint(run) == version
    assert trustlens.open_run(run).last_step == 2
    assert trustlens.find_runs(tmp_path) == [run]
    kept = pd.read_parquet(run / ".replaced" / "000001" / "layers")
    assert sorted(kept["step"]) == before["layers"]["step"].tolist()
    assert sorted(pd.read_parquet(run / "layers")["step"]) == [1] * 4 + [2] * 4


def test_a_rollback_is_not_dropped_and_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, begun = threading.Event(), threading.Event()
    flush = RunWriter.flush

    def hanging(store: RunWriter) -> None:
        begun.set()
        disk.wait()
        flush(store)

    monkeypatch.setattr(RunWriter, "flush", hanging)
    job = Job()
    recorder = job.record(tmp_path / "run")
    recorder._pipeline._thread._capacity = 3
    job.train(4, recorder)
    assert begun.wait(10)
    job.train(8)
    recorder.load_state_dict({"step": 1})
    disk.set()
    recorder.close()
    run = trustlens.open_run(tmp_path / "run")
    assert run.info.recording.dropped > 0
    assert run.last_step == 1


@pytest.mark.parametrize(
    "given", [{}, {"step": -1}, {"step": 1.5}, {"step": True}, {"step": 2**53}, None, [8]]
)
def test_an_invalid_recorder_state_is_refused(given: Any, tmp_path: Path) -> None:
    with (
        Job().record(tmp_path) as recorder,
        pytest.raises(UsageError, match="give what its state_dict returned"),
    ):
        recorder.load_state_dict(given)


def test_a_checkpoint_ahead_of_the_run_leaves_a_gap_and_logs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Job()
    with first.record(tmp_path / "run") as recorder:
        first.train(5, recorder)
    first.train(9)
    saved = first.checkpoint()
    second = Job()
    second.load(saved)
    with second.record(tmp_path / "run", resume=True) as recorder:
        second.train(11, recorder)
    assert len(caplog.records) == 1
    assert "has rows up to step 5 only" in caplog.text
    run = trustlens.open_run(tmp_path / "run")
    assert run.matrix("nonfinite").index.tolist() == [*range(1, 6), 10, 11]
    (sentence,) = run.missing()
    assert sentence.startswith("steps 6 to 9 are missing")
    caplog.clear()
    with Job().record(tmp_path / "new", resume=True) as recorder:  # a new run: no gap
        recorder.load_state_dict({"step": 100})
        assert recorder.step == 100
    assert not caplog.records


def test_a_gap_that_is_recorded_later_is_no_longer_reported(tmp_path: Path) -> None:
    first = Job()
    with first.record(tmp_path) as recorder:
        first.train(10, recorder)
    with first.record(tmp_path, resume=True) as recorder:
        recorder.load_state_dict({"step": 20})
        first.train(15, recorder)
        recorder.flush()
        (sentence,) = trustlens.open_run(tmp_path).missing()
        assert sentence.startswith("steps 11 to 20 are missing")
        recorder.load_state_dict({"step": 5})
        first.train(55, recorder)
        recorder.flush()
        assert trustlens.open_run(tmp_path).missing() == []
        recorder.load_state_dict({"step": 50})
    run = trustlens.open_run(tmp_path)
    assert run.matrix("nonfinite").index.tolist() == list(range(1, 46))
    (sentence,) = run.missing()
    assert sentence.startswith("steps 46 to 50 are missing")


def test_rows_left_by_a_failed_rollback_are_not_later_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = segment_rollback.write_sealed

    def full(path: Path, table: str, rows: Any) -> None:
        if table == "layers":
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(path, table, rows)

    job = Job()
    with job.record(tmp_path) as recorder, monkeypatch.context() as patch:
        job.train(10, recorder)
        patch.setattr(segment_rollback, "write_sealed", full)
        recorder.load_state_dict({"step": 5})
        recorder.flush()
        job.train(13, recorder)  # steps 6 to 8 again, not recorded
    run = trustlens.open_run(tmp_path)
    assert (run.last_step, run.matrix("nonfinite").index.max()) == (5, 10)
    with job.record(tmp_path, resume=True) as recorder:
        recorder.load_state_dict({"step": 8})
        job.train(15, recorder)
    run = trustlens.open_run(tmp_path)
    assert run.matrix("nonfinite").index.tolist() == [1, 2, 3, 4, 5, 9, 10]
    assert set(run.metrics()["step"]) == {1, 2, 3, 4, 5, 9, 10}
    (sentence,) = run.missing()
    assert sentence.startswith("steps 6 to 8 are missing")


def test_two_rollbacks_before_the_writer_performs_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, whole = threading.Event(), RunWriter.rollback

    def hanging(store: RunWriter, *given: Any) -> Path | None:
        disk.wait()
        return whole(store, *given)

    monkeypatch.setattr(RunWriter, "rollback", hanging)
    job = Job()
    with job.record(tmp_path) as recorder:
        job.train(10, recorder)
        recorder.load_state_dict({"step": 5})
        recorder.load_state_dict({"step": 20})
        job.train(12, recorder)
        disk.set()
    run = trustlens.open_run(tmp_path)
    assert run.matrix("nonfinite").index.tolist() == [*range(1, 6), 21, 22]
    (sentence,) = run.missing()
    assert sentence.startswith("steps 6 to 20 are missing")


def test_metrics_logged_before_the_first_step_get_the_checkpoints_step(tmp_path: Path) -> None:
    first = Job()
    with first.record(tmp_path / "run") as recorder:
        first.train(6)
        saved = first.checkpoint()
        first.train(9)
    second = Job()
    with second.record(tmp_path / "run", resume=True) as recorder:
        recorder.log(early=1.0)
        second.load(saved)
        recorder.log(accuracy=0.5)
        second.train(7)
    with Job().record(tmp_path / "run", resume=True) as recorder:
        recorder.log(last=1.0)  # without a step
    metrics = trustlens.open_run(tmp_path / "run").metrics()
    assert dict(zip(metrics["name"], metrics["step"], strict=True)) == {
        "early": 6,
        "accuracy": 6,
        "last": 7,
    }


def test_an_error_during_a_rollback_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    first = Job()
    with first.record(tmp_path / "run") as recorder:
        first.train(6, recorder)
    second, plain = Job(), Job()
    plain.train(5)
    monkeypatch.setattr("trustlens.store.segments.rollback._copy", fail)
    with second.record(tmp_path / "run", resume=True) as recorder:
        recorder.load_state_dict({"step": 2})
        second.train(5, recorder)
    for one, other in zip(second.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "No space left" in caplog.text
    run = trustlens.open_run(tmp_path / "run")
    assert run.matrix("nonfinite").index.tolist() == [1, 2, 3, 4, 5, 6]
    assert not list((tmp_path / "run" / "layers").glob(".*"))


def test_a_resumed_run_keeps_the_number_of_dropped_rows_but_not_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lose(recorder: trustlens.Recorder, rows: int) -> None:
        recorder._pipeline._thread.dropped += rows

    def fail(*_: Any) -> None:
        raise RuntimeError("injected")

    first = Job()
    with first.record(tmp_path) as recorder:
        first.train(2, recorder)
        recorder.flush()
        lose(recorder, 3)
        with monkeypatch.context() as patch:
            patch.setattr(RunWriter, "append", fail)
            first.train(3, recorder)
            recorder.flush()
    assert "injected" in caplog.text
    recording = trustlens.open_run(tmp_path).info.recording
    assert (recording.dropped, recording.stopped) == (3, "RuntimeError: injected")
    with first.record(tmp_path, resume=True) as recorder:
        lose(recorder, 2)
    recording = trustlens.open_run(tmp_path).info.recording
    assert recording.dropped == 5
    assert recording.stopped is None


def test_a_step_count_on_an_accelerator_is_read_only_if_a_run_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading it would synchronize. The test uses CPU tensors."""
    monkeypatch.setattr(resume, "is_on_accelerator", lambda value: isinstance(value, torch.Tensor))
    waits: list[bool] = []

    def count(optimizer: torch.optim.Optimizer, *, wait: bool = True) -> int | None:
        waits.append(wait)
        return own_count(optimizer, wait=wait)

    own_count, first = resume.own_count, Job()
    with first.record(tmp_path) as recorder, monkeypatch.context() as patch:
        patch.setattr(resume, "own_count", count)
        first.train(6, recorder)
    assert waits == [False]
    assert resume.own_count(first.optimizer, wait=False) is None
    assert resume.own_count(first.optimizer) == 6
    with first.record(tmp_path, resume=True) as recorder:
        recorder.load_state_dict({"step": 4})
        first.train(7, recorder)
        assert recorder.step == 5
    assert trustlens.open_run(tmp_path).info.recording.optimizer_steps_before == (2,)


def test_a_step_count_is_not_read_again_while_another_optimizer_has_not_stepped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[torch.optim.Optimizer] = []

    def count(optimizer: torch.optim.Optimizer, *, wait: bool = True) -> int | None:
        read.append(optimizer)
        return own_count(optimizer, wait=wait)

    def train(steps: int, load: Any = None) -> Any:
        often, never = (torch.optim.Adam([nn.Parameter(torch.ones(2))]) for _ in range(2))
        if load is not None:
            often.load_state_dict(load)
        with trustlens.record([often, never], tmp_path, resume=True) as recorder:
            read.clear()
            for _ in range(steps):
                often.param_groups[0]["params"][0].grad = torch.ones(2)
                often.step()
            assert recorder.step == (steps if load is None else 2 * steps)
            assert read.count(often) == 1
            assert read.count(never) == (1 if load is None else steps)
        return often.state_dict()

    own_count = resume.own_count
    monkeypatch.setattr(resume, "own_count", count)
    train(4, train(4))


@pytest.mark.parametrize("late", [0, 1])
def test_a_skipped_step_is_counted_when_its_optimizer_is_located(late: int, tmp_path: Path) -> None:
    """One of two optimizers starts at step 1 and overflows; then the other is loaded and steps."""

    def train(directory: Path, *, saved: Any = None, uninterrupted: bool = False) -> Any:
        layers = [nn.Parameter(torch.ones(3)) for _ in range(2)]
        optimizers = [torch.optim.AdamW([layer]) for layer in layers]
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

        def step(index: int, factor: float = 1.0) -> None:
            optimizers[index].zero_grad()
            scaler.scale(layers[index].square().sum() * factor).backward()
            scaler.step(optimizers[index])
            scaler.update()

        with trustlens.record(optimizers, directory, resume=True) as recorder:
            if saved is None:
                for _ in range(4):
                    step(1 - late)
                state = copy.deepcopy(optimizers[1 - late].state_dict())
                if not uninterrupted:
                    for _ in range(5):
                        step(1 - late)
                        step(late)
                    return state
            step(late, float("inf"))
            if saved is not None:
                optimizers[1 - late].load_state_dict(saved)
            step(1 - late)
            step(late)
            step(1 - late)
            assert recorder.state_dict()["own"][late] == 2
            assert recorder.step == 6
        return None

    saved = train(tmp_path / "run")
    train(tmp_path / "run", saved=saved)
    train(tmp_path / "uninterrupted", uninterrupted=True)
    run, uninterrupted = contents(tmp_path / "run"), contents(tmp_path / "uninterrupted")
    keys = ["step", "layer"]
    assert (
        run["layers"][keys].to_numpy().tolist() == uninterrupted["layers"][keys].to_numpy().tolist()
    )
    assert run["steps"].to_numpy().tolist() == uninterrupted["steps"].to_numpy().tolist()


def test_folders_that_hold_no_valid_run_and_models_that_do_not_fit(tmp_path: Path) -> None:
    def other(job: Job) -> trustlens.Recorder:
        job.model[2] = nn.Linear(5, 3)
        job.optimizer = torch.optim.Adam(job.model.parameters())
        return job.record(tmp_path / "run", resume=True)

    first = Job()
    with first.record(tmp_path / "run", resume=True) as recorder:  # a new run
        first.train(2, recorder)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(UsageError, match="resume=True"):
        Job().record(tmp_path / "run")
    with pytest.raises(UsageError, match=r"'2.weight' of shape \[2, 5\], and here it has \[3, 5\]"):
        other(Job())
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(RunError, match="no schema_version"):
        Job().record(tmp_path / "run", resume=True)
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(UsageError, match="already holds a run"):
        Job().record(tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    "invalid",
    [
        {"optimizer_steps_before": 5},
        {"optimizer_steps_before": [None]},
        {"optimizer_steps_before": ["x", 2.5, True]},
        {"dropped": "x"},
        {"dropped": [1], "stopped": 3},
        {"passed_over": 5, "gaps": "ab"},
        {"gaps": [[1]], "torn_layers": {}},
    ],
)
def test_invalid_entries_of_run_json_are_ignored(
    invalid: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job()
    with job.record(tmp_path) as recorder:
        job.train(3, recorder)
    info = json.loads((tmp_path / "run.json").read_text())
    info["recorder"] |= invalid
    (tmp_path / "run.json").write_text(json.dumps(info))
    with job.record(tmp_path, resume=True) as recorder:
        job.train(5, recorder)
    assert not caplog.records
    run = trustlens.open_run(tmp_path)
    assert (run.status, run.missing()) == ("closed", [])
    assert run.matrix("nonfinite").index.tolist() == [1, 2, 3, 4, 5]
    assert not (tmp_path / ".lock").exists()


def test_a_config_too_deeply_nested_to_be_written_again_is_reported(tmp_path: Path) -> None:
    job = Job()
    with job.record(tmp_path, config={"deep": "here"}) as recorder:
        job.train(3, recorder)
    text = (tmp_path / "run.json").read_text().replace('"here"', "[" * 600 + "]" * 600)
    text = text.replace('"closed": "', '"closed": null, "was": "')  # so that repair has to write
    (tmp_path / "run.json").write_text(text)
    tries: list[Callable[[], object]] = [
        lambda: job.record(tmp_path, resume=True),
        lambda: repair(tmp_path),
    ]
    for attempt in (*tries, *tries):  # twice: the lock is released after an error
        with pytest.raises(RunError, match=r"run\.json' cannot be written: .* nested too deeply"):
            attempt()
    assert (tmp_path / "run.json").read_text() == text
    assert trustlens.open_run(tmp_path).last_step == 3


def test_a_run_resumed_with_another_model_has_the_layers_of_both(tmp_path: Path) -> None:
    first = Job()
    with first.record(tmp_path / "run") as recorder:
        first.train(2, recorder)
    second = Job()
    second.model.append(nn.Linear(2, 2))
    second.optimizer = torch.optim.AdamW(
        [*second.model[0].parameters(), *second.model[3].parameters()]
    )
    with second.record(tmp_path / "run", resume=True, name="b", config={"b": 1}) as recorder:
        recorder.load_state_dict({"step": 2})
        second.train(1, recorder)
    run = trustlens.open_run(tmp_path / "run")
    assert (run.name, run.info.config) == ("b", {"b": 1})
    assert run.layer_names == ["0.weight", "0.bias", "3.weight", "3.bias", "2.weight", "2.bias"]
    assert run.layers(layers=["2.bias"])["step"].tolist() == [1, 2]
    assert run.layers(layers=["3.bias"])["step"].tolist() == [3]
