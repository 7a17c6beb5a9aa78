"""Recording resumes after a full disk and ends if the directory is removed; training continues."""

from __future__ import annotations

import errno
import json
import logging
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import trustlens
from tests.support.runs import layers_table, run_info, steps_table
from trustlens.cli import main
from trustlens.store import table_writer as store_table
from trustlens.store import writer as store_writer
from trustlens.store.reader import read_table
from trustlens.store.repair import repair
from trustlens.store.segments import leftovers
from trustlens.store.writer import RunWriter

LAYERS = ["a", "b"]


def append(writer: RunWriter, first: int, last: int) -> None:
    for begin in range(first, last + 1, 5):
        steps = np.arange(begin, min(begin + 5, last + 1))
        values = {"weight_norm": steps[:, None] + np.arange(2) / 4}
        writer.append("layers", layers_table(steps, LAYERS, values))
        writer.append("steps", steps_table(steps))
    writer.flush()


def steps_of(directory: Path, table: str = "layers") -> list[int]:
    steps = read_table(directory, table, ["step"])["step"].to_pylist()
    assert len(steps) == len(set(steps)) * (2 if table == "layers" else 1)
    return sorted(set(steps))


CHILD = """
    import json, logging, resource, sys
    import torch, trustlens
    from pathlib import Path
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("trustlens").addHandler(handler)
    logging.getLogger("trustlens").propagate = False

    def limited(size):
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    def train(recorder, steps):
        for step in range(steps):
            parameter.grad = torch.sin(parameter.detach() + optimizer_steps[0])
            optimizer_steps[0] += 1
            optimizer.step()
            if recorder is not None and step % 10 == 9:
                recorder.flush()

    directory = Path(sys.argv[1])
    outcome = []
    for recorded in (True, False):
        optimizer_steps = [0]
        parameter = torch.nn.Parameter(torch.ones(300))
        optimizer = torch.optim.AdamW([parameter], lr=0.01)
        recorder = trustlens.record(optimizer, directory) if recorded else None
        train(recorder, 50)
        limited(100)
        train(recorder, 200)
        limited(resource.RLIM_INFINITY)
        train(recorder, 50)
        if recorded:
            recorder.close()
        outcome.append(parameter.tolist())
    sys.stdout.write(json.dumps({"same": outcome[0] == outcome[1], "said": said}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
def test_a_full_disk_is_reported_and_its_steps_are_listed_as_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(directory)],
        capture_output=True,
        text=True,
        check=True,
    )
    outcome = json.loads(done.stdout)
    assert outcome["same"]
    assert len(outcome["said"]) == 1
    assert "there is no room to write to" in outcome["said"][0]
    run = trustlens.open_run(directory)
    (first, last), *others = run.info.recording.gaps
    assert not others
    assert [first, last] == [51, 250]
    recorded = run.matrix("nonfinite").index.tolist()
    assert recorded == [*range(1, first), *range(last + 1, 301)]
    assert run.status == "closed"
    (sentence,) = run.missing()
    assert sentence.startswith(f"steps {first} to {last} are missing: there was no room")
    assert main(["show", str(directory)]) == 0
    assert sentence in capsys.readouterr().out
    assert len(pd.read_parquet(directory / "layers")) == len(recorded)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB; skips if this process may not mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("this process may not mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_recording_resumes_after_a_full_disk(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = small_disk / "run"
    writer = RunWriter(run, run_info(layers=LAYERS), segment_rows=100)
    append(writer, 1, 30)
    filler = small_disk / "filler"
    fill(filler)
    append(writer, 31, 400)
    before = steps_of(run)
    assert before[:30] == list(range(1, 31))
    assert before[-1] < 400
    filler.unlink()
    append(writer, 401, 500)
    writer.close(writer.info.closed_at("2026-11-25T00:00:00+00:00"))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    opened = trustlens.Run(run)
    recorded = set(steps_of(run))
    assert recorded >= set(range(401, 501))
    assert not list((run / "journal").iterdir() if (run / "journal").exists() else [])
    gaps = opened.info.recording.gaps
    missing = set(range(1, 501)) - recorded
    assert missing
    assert missing <= {step for first, last in gaps for step in range(first, last + 1)}
    assert len(opened.missing()) == len(gaps)
    with_resume = RunWriter(run, run_info(), resume=lambda info: info)
    append(with_resume, 501, 510)
    with_resume.close(with_resume.info)
    assert steps_of(run)[-10:] == list(range(501, 511))


def training() -> tuple[torch.optim.Optimizer, Callable[[trustlens.Recorder, int], None]]:
    """Return an optimizer, and a function that takes steps of it, flushing after each."""
    parameter = torch.nn.Parameter(torch.ones(30))
    optimizer = torch.optim.AdamW([parameter])

    def train(recorder: trustlens.Recorder, steps: int) -> None:
        for _ in range(steps):
            parameter.grad = torch.ones(30)
            optimizer.step()
            recorder.flush()

    return optimizer, train


@pytest.mark.parametrize("back", [0, 15])
def test_steps_recorded_again_after_a_full_disk_are_not_missing(
    back: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer, train = training()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with trustlens.record(optimizer, tmp_path) as recorder:
        train(recorder, 20)
        with monkeypatch.context() as patch:
            patch.setattr(store_table.TableWriter, "_write_to_journal", full)
            train(recorder, 20)
    (sentence,) = trustlens.Run(tmp_path).missing()
    assert sentence.startswith("steps 21 to 40 are missing: there was no room")
    with trustlens.record(optimizer, tmp_path, resume=True) as recorder:
        recorder.load_state_dict({"step": back})
        train(recorder, 30)
    run = trustlens.Run(tmp_path)
    assert run.matrix("nonfinite").index.tolist() == list(range(1, back + 31))
    assert run.missing() == []


def test_a_seal_that_failed_on_a_full_disk_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RunWriter(tmp_path, run_info(layers=LAYERS), segment_rows=40)
    original = store_table.write_sealed

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for module in (store_table, leftovers):
        monkeypatch.setattr(module, "write_sealed", full)
    append(writer, 1, 50)
    assert not list((tmp_path / "layers").iterdir())
    assert steps_of(tmp_path) == list(range(1, 51))
    for module in (store_table, leftovers):
        monkeypatch.setattr(module, "write_sealed", original)
    append(writer, 51, 100)
    assert steps_of(tmp_path) == list(range(1, 101))
    writer.close(writer.info)
    assert sorted(set(pd.read_parquet(tmp_path / "layers")["step"])) == list(range(1, 101))
    assert writer.info.recording.gaps == ()


def test_run_json_is_written_after_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RunWriter(tmp_path, run_info(layers=LAYERS))
    original = store_writer.write_info

    def full(*_: Any) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(store_writer, "write_info", full)
    writer.change_info(lambda info: info.closed_at("now", dropped=1))
    assert trustlens.Run(tmp_path).info.recording.dropped == 0
    monkeypatch.setattr(store_writer, "write_info", original)
    writer.flush()
    assert trustlens.Run(tmp_path).info.recording.dropped == 1


def test_a_layer_has_rows_only_after_run_json_lists_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RunWriter(tmp_path, run_info(layers=["a"]))

    def both(step: int) -> None:
        steps = np.array([step])
        writer.append("layers", layers_table(steps, LAYERS, {}))
        writer.append("steps", steps_table(steps))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store_writer, "write_info", full)
        added = run_info(layers=LAYERS).layers
        writer.change_info(lambda info: replace(info, layers=added))
        both(1)
        writer.flush()
        both(2)
        killed = tmp_path.with_name("killed")
        shutil.copytree(tmp_path, killed)
    both(3)  # the disk is no longer full
    run = trustlens.Run(killed)
    assert run.layers().empty
    assert run.last_step == 2
    writer.close(writer.info)
    run = trustlens.Run(tmp_path)
    assert run.layers()["layer"].tolist() == LAYERS
    assert run.matrix("nonfinite").index.tolist() == [3]
    assert run.info.recording.gaps == ((1, 2),)


def test_removing_the_directory_ends_the_recording_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_writer, "SEGMENT_ROWS", 10)
    parameter = torch.nn.Parameter(torch.ones(30))
    optimizer = torch.optim.AdamW([parameter])
    with trustlens.record(optimizer, tmp_path / "run") as recorder:
        for step in range(40):
            if step == 15:
                shutil.rmtree(tmp_path / "run")
            parameter.grad = torch.ones(30)
            optimizer.step()
            recorder.flush()
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "stopped recording" in warnings[0].getMessage()


def test_a_read_only_file_system_ends_the_recording_and_flushed_rows_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_writer, "SEGMENT_ROWS", 10)
    optimizer, train = training()

    def refused(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    recorder = trustlens.record(optimizer, tmp_path)
    train(recorder, 15)
    with monkeypatch.context() as patch:
        patch.setattr(store_table, "write_sealed", refused)
        patch.setattr(store_writer, "write_info", refused)
        train(recorder, 25)
        recorder.close()
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    run = trustlens.Run(tmp_path)
    recorded = run.matrix("nonfinite").index
    assert recorded[: run.last_step].tolist() == list(range(1, run.last_step + 1))
    last = run.last_step
    assert last >= 19
    with trustlens.record(optimizer, tmp_path, resume=True) as recorder:
        train(recorder, 5)
    assert trustlens.Run(tmp_path).last_step == 45
    gap = trustlens.Run(tmp_path).info.recording.passed_over
    assert gap == ((last + 1, 40),)
    assert any("before the run was resumed" in each for each in trustlens.Run(tmp_path).missing())


def test_nothing_is_missing_from_a_complete_run(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, run_info(layers=LAYERS))
    append(writer, 1, 10)
    assert trustlens.Run(tmp_path).missing() == []  # while it is recorded
    writer.close(writer.info.closed_at("2026-11-25T00:00:00+00:00"))
    assert trustlens.Run(tmp_path).missing() == []
    assert repair(tmp_path) == []
