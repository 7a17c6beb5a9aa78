"""Changes while recording: optimizers, working directory, forks, full or hanging disks."""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import trustlens
from trustlens.cli import main
from trustlens.errors import UsageError
from trustlens.recording.writing.writer_thread import LINGER, WriterThread


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 4, bias=False))


def step(model: nn.Module, *optimizers: torch.optim.Optimizer, times: int = 1) -> None:
    for _ in range(times):
        model.zero_grad()
        model(torch.ones(1, 3)).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()


def test_rows_keep_their_layer_names_if_layers_are_added_in_front(tmp_path: Path) -> None:
    """Unfreezing adds layers before those whose first steps are still queued for the writer."""
    model = two_layers()
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.01)
    with trustlens.record(optimizer, tmp_path, model=model) as recorder:
        norm = model[1].weight.norm().item()
        step(model, optimizer)
        recorder.flush()
        follower = trustlens.open_run(tmp_path)
        assert follower.layer_names == ["1.weight"]
        step(model, optimizer)
        optimizer.add_param_group({"params": [model[0].weight], "lr": 0.1})
        step(model, optimizer)
        recorder.flush()
        for run in (trustlens.open_run(tmp_path), follower):
            norms = run.matrix("weight_norm")
            assert norms.columns.tolist() == ["0.weight", "1.weight"]
            assert norms["0.weight"].isna().tolist() == [True, True, False]
            assert norms.loc[1, "1.weight"] == pytest.approx(norm, rel=1e-6)
            sizes = norms.loc[3] ** 2 / run.matrix("weight_rms").loc[3] ** 2
            assert sizes.tolist() == pytest.approx([6, 8], rel=1e-6)


def test_a_removed_layer_keeps_its_rows(tmp_path: Path) -> None:
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with trustlens.record(optimizer, tmp_path, model=model):
        step(model, optimizer)
        del optimizer.param_groups[0]["params"][0]
        step(model, optimizer)
    run = trustlens.open_run(tmp_path)
    assert run.layers(layers=["0.weight"])["step"].tolist() == [1]
    assert run.layers(layers=["1.weight"])["step"].tolist() == [1, 2]


def test_a_replaced_parameter_is_followed(tmp_path: Path) -> None:
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with trustlens.record(optimizer, tmp_path, model=model):
        step(model, optimizer)
        model[1].weight = nn.Parameter(torch.full((4, 2), 0.5))
        optimizer.param_groups[0]["params"][1] = model[1].weight
        step(model, optimizer)
    norms = trustlens.open_run(tmp_path).matrix("weight_norm")
    assert norms.loc[2, "1.weight"] == pytest.approx(2**0.5, rel=1e-6)


def test_changed_options_are_recorded_after_a_checkpoint_was_loaded(tmp_path: Path) -> None:
    model = two_layers()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    with trustlens.record(optimizer, tmp_path, model=model):
        step(model, optimizer)
        optimizer.load_state_dict(optimizer.state_dict())  # makes new groups
        optimizer.param_groups[0].update(lr=0.5, weight_decay=0.25)
        step(model, optimizer)
    run = trustlens.open_run(tmp_path)
    assert run.matrix("learning_rate")["0.weight"].tolist() == pytest.approx([0.1, 0.5])
    assert run.matrix("weight_decay")["0.weight"].tolist() == [0, 0.25]


def test_a_step_whose_closure_raised_is_not_recorded(tmp_path: Path) -> None:
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def broken() -> float:
        raise ValueError("error in the closure")

    with trustlens.record(optimizer, tmp_path, model=model) as recorder:
        step(model, optimizer)
        with pytest.raises(ValueError, match="error in the closure"):
            optimizer.step(broken)
        step(model, optimizer)
        assert recorder.step == 2
    assert trustlens.open_run(tmp_path).matrix("nonfinite").index.tolist() == [1, 2]


def test_optimizers_that_step_at_different_times_share_one_step_count(tmp_path: Path) -> None:
    model = two_layers()
    often = torch.optim.SGD(model[0].parameters(), lr=0.01)
    seldom = torch.optim.SGD(model[1].parameters(), lr=0.01)
    with trustlens.record([often, seldom], tmp_path, model=model) as recorder:
        step(model, often, times=3)
        step(model, seldom)
        recorder.log(loss=1.0)
        assert recorder.step == 3
    run = trustlens.open_run(tmp_path)
    assert run.steps()["step"].tolist() == [1, 2, 3]
    assert run.metrics()["step"].tolist() == [3]


def test_sums_of_models_trained_in_threads_are_not_mixed(tmp_path: Path) -> None:
    def train(value: float) -> None:
        weight = nn.Parameter(torch.full((400_000,), value))
        optimizer = torch.optim.SGD([weight], lr=0.0)
        with trustlens.record(optimizer, tmp_path / str(value)):
            for _ in range(6):
                weight.grad = torch.full_like(weight, value)
                optimizer.step()

    threads = [threading.Thread(target=train, args=(value,)) for value in (1.0, 3.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for value in (1.0, 3.0):
        norms = trustlens.open_run(tmp_path / str(value)).matrix("grad_norm")
        np.testing.assert_allclose(norms, value * 400_000**0.5, rtol=1e-6)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_a_forked_process_does_not_write_to_the_run(tmp_path: Path) -> None:
    code = """
        import os, sys, torch, trustlens
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        def step():
            weight.grad = torch.ones(3)
            optimizer.step()
        recorder = trustlens.record(optimizer, sys.argv[1])
        step()
        recorder.flush()
        child = os.fork()
        step()
        recorder.log(loss=1.0)
        recorder.flush()
        if child == 0:
            for _ in range(5):
                step()
            recorder.close()
            sys.exit()
        assert os.waitpid(child, 0)[1] == 0
        step()
    """
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), str(tmp_path / "run")],
        check=True,
        timeout=60,
    )
    run = trustlens.open_run(tmp_path / "run")
    assert run.matrix("nonfinite").index.tolist() == [1, 2, 3]
    assert len(run.metrics()) == 1
    assert run.status == "closed"  # at the exit of the interpreter
    assert run.info.recording.stopped is None


def test_layers_of_the_same_name_get_different_names(tmp_path: Path) -> None:
    parameters = [nn.Parameter(torch.full((1,), float(i))) for i in (1, 2, 3)]
    optimizers = [torch.optim.SGD([("weight", p)], lr=0.1) for p in parameters]
    with trustlens.record(optimizers, tmp_path):
        for optimizer in optimizers:
            optimizer.step()
    norms = trustlens.open_run(tmp_path).matrix("weight_norm")
    assert norms.loc[1].to_dict() == {"weight": 1, "weight#2": 2, "weight#3": 3}


def test_a_name_that_cannot_be_encoded_is_escaped(tmp_path: Path) -> None:
    model = nn.Module()
    for name in ("\ud800", r"\ud800", "ok"):
        model.register_parameter(name, nn.Parameter(torch.ones(3)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for resume in (False, True):
        with trustlens.record(optimizer, tmp_path, model=model, resume=resume):
            for parameter in model.parameters():
                parameter.grad = torch.ones(3)
            optimizer.step()
    run = trustlens.open_run(tmp_path)
    assert run.layer_names == [r"\ud800", r"\ud800#2", "ok"]
    assert run.matrix("grad_norm").notna().to_numpy().tolist() == [[True] * 3] * 2
    assert main(["list", str(tmp_path)]) == 0


def test_changing_the_working_directory_does_not_move_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with trustlens.record(optimizer, "runs/lamb", model=model) as recorder:
        step(model, optimizer, times=2)
        recorder.flush()
        monkeypatch.chdir(there)
        step(model, optimizer)
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
        step(model, optimizer)
        recorder.load_state_dict({"step": 3})
        step(model, optimizer, times=2)
    assert list(there.iterdir()) == []
    run = trustlens.open_run(here / "runs" / "lamb")
    assert (run.name, run.status, run.missing()) == ("lamb", "closed", [])
    assert run.matrix("nonfinite").index.tolist() == [1, 2, 3, 4, 5]


def test_steps_of_a_slow_training_are_written_while_it_runs() -> None:
    written: list[list[int]] = []
    thread: WriterThread[int] = WriterThread(written.append)
    for i in range(8):
        thread.put(i)
        time.sleep(LINGER / 2)
    assert len(written) > 1
    thread.close()
    assert [item for items in written for item in items] == list(range(8))


def _full_disk(directory: Path, report: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with trustlens.record(optimizer, directory, model=model) as recorder:
        for _ in range(20):
            step(model, optimizer, times=25)
            recorder.flush()
    report.put(model[0].weight.detach().numpy())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_steps_that_could_not_be_written_are_reported_as_gaps(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    report = context.SimpleQueue()
    process = context.Process(target=_full_disk, args=(tmp_path / "run", report))
    process.start()
    weight = report.get()
    process.join()
    model = two_layers()
    step(model, torch.optim.SGD(model.parameters(), lr=0.01), times=500)
    np.testing.assert_array_equal(weight, model[0].weight.detach().numpy())
    run = trustlens.open_run(tmp_path / "run")
    steps = run.matrix("nonfinite").index
    assert 25 <= len(steps) < 500
    gaps = [np.arange(first, last + 1) for first, last in run.info.recording.gaps]
    np.testing.assert_array_equal(np.sort(np.concatenate([steps, *gaps])), np.arange(1, 501))
    assert len(run.missing()) == len(gaps)
    assert not list((tmp_path / "run").rglob(".*"))


def _open_files() -> int:
    descriptors = Path("/proc/self/fd")
    return len(list(descriptors.iterdir())) if descriptors.exists() else 0


def test_a_failure_that_also_prevents_closing_logs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = _open_files()
    with trustlens.record(optimizer, tmp_path / "run", model=model) as recorder:
        step(model, optimizer)
        recorder.flush()
        for path in sorted((tmp_path / "run").rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        (tmp_path / "run").rmdir()
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
        step(model, optimizer, times=3)
        recorder.log(loss=1.0)
    assert len(caplog.records) == 1
    assert "was removed or replaced while it was being recorded" in caplog.text
    assert _open_files() == before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o, d: trustlens.record(None, d), "got 'NoneType' for an optimizer"),
        (lambda o, d: trustlens.record(nn.Linear(1, 1), d), "got 'Linear' for an optimizer"),
        (lambda o, d: trustlens.record([o, o], d), "the same optimizer twice"),
        (lambda o, d: trustlens.record(o, d, config=argparse.Namespace()), r"vars\(arguments\)"),
    ],
)
def test_invalid_arguments_are_named(
    call: Callable[..., Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        call(torch.optim.SGD(two_layers().parameters(), lr=0.1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_config_with_unusual_values_is_stored_as_standard_json(tmp_path: Path) -> None:
    config = {"a": np.complex64(1), "b": float("inf"), "c": "name-\udcff", "d": np.float32(0.5)}
    optimizer = torch.optim.SGD(two_layers().parameters(), lr=0.1)
    with trustlens.record(optimizer, tmp_path, config=config):
        pass
    assert trustlens.open_run(tmp_path).info.config == {
        "a": "(1+0j)",
        "b": "inf",
        "c": "name-\udcff",
        "d": 0.5,
    }
    text = (tmp_path / "run.json").read_bytes().decode()  # raises if it is not UTF-8
    assert "Infinity" not in text


def test_one_warning_for_a_metric_that_is_not_a_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = torch.optim.SGD(two_layers().parameters(), lr=0.1)
    with trustlens.record(optimizer, tmp_path) as recorder:
        for size in range(2, 6):
            recorder.log(loss=torch.ones(size), self=1.0)
    assert len(caplog.records) == 1
    assert trustlens.open_run(tmp_path).metrics()["value"].tolist() == [1.0] * 4


def test_the_queue_for_a_hanging_disk_is_bounded_in_bytes() -> None:
    disk, begun = threading.Event(), threading.Event()
    written: list[int] = []

    def write(items: list[int]) -> None:
        begun.set()
        disk.wait()
        written.extend(items)

    thread: WriterThread[int] = WriterThread(write, memory=100)
    assert thread.put(0, 1000)  # an empty queue takes any size
    assert begun.wait(10)
    assert not thread.put(1, 1)
    disk.set()
    thread.flush()
    begun.clear()
    disk.clear()
    assert [thread.put(i, 40) for i in (2, 3, 4)] == [True, True, False]
    disk.set()
    thread.close()
    assert written == [0, 2, 3]
    assert thread.dropped == 2


def test_a_listener_whose_close_raises_or_that_lacks_a_method_does_not_affect_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Listener:
        closed = False

        def on_layers(self, table: Any) -> None: ...
        def on_metrics(self, table: Any) -> None: ...

        def close(self) -> None:
            self.closed = True

    class Broken(Listener):
        def close(self) -> None:
            raise RuntimeError("injected")

    class Incomplete:
        def close(self) -> None: ...

    model, other = two_layers(), Listener()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with trustlens.record(
        optimizer, tmp_path, model=model, listeners=[Broken(), Incomplete(), other]
    ):
        step(model, optimizer)
    assert other.closed
    assert trustlens.open_run(tmp_path).last_step == 1
    assert len(caplog.records) == 2
