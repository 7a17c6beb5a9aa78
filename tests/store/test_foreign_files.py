"""Files in a run's directory that do not belong to the run are neither written nor removed."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import trustlens
from tests.support.runs import layers_table, make_run, run_info, steps_table
from trustlens.errors import RunError
from trustlens.store.atomic_write import temporary_name
from trustlens.store.repair import repair
from trustlens.store.writer import RunWriter

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX locks")


def write(writer: RunWriter, first: int, last: int) -> None:
    steps = np.arange(first, last + 1)
    writer.append("layers", layers_table(steps, ["a"], {"weight_norm": steps[:, None]}))
    writer.append("steps", steps_table(steps))
    writer.flush()


def resumed(directory: Path) -> RunWriter:
    return RunWriter(directory, run_info(), resume=lambda info: info)


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@posix
@pytest.mark.parametrize("closed", [False, True])
def test_another_run_that_replaced_a_removed_one_is_not_changed(
    tmp_path: Path, *, closed: bool
) -> None:
    run = tmp_path / "run"
    old = RunWriter(run, run_info("old"), segment_rows=10)
    new = RunWriter(tmp_path / "new", run_info("new"), segment_rows=10)
    write(old, 1, 15)
    write(new, 1, 5)
    if closed:
        new.close(new.info)
    shutil.rmtree(run)
    (tmp_path / "new").rename(run)
    before = contents(run)
    assert (run / ".lock" in before) is not closed
    for work in (
        lambda: write(old, 16, 30),
        lambda: old.change_info(lambda info: info.closed_at("now")),
        lambda: old.rollback(3, {}),
        lambda: old.close(old.info.closed_at("now")),
    ):
        with pytest.raises(OSError, match="was removed or replaced while it was being recorded"):
            work()
    assert contents(run) == before


@posix
def test_a_replaced_run_ends_the_recording_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parameter = torch.nn.Parameter(torch.ones(30))
    optimizer = torch.optim.AdamW([parameter])
    other = make_run(tmp_path / "other")
    with trustlens.record(optimizer, tmp_path / "run"):
        shutil.rmtree(tmp_path / "run")
        other.rename(tmp_path / "run")
        for _ in range(5):
            parameter.grad = torch.ones(30)
            optimizer.step()
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "run' was removed or replaced while it was" in warnings[0].getMessage()
    run = trustlens.Run(tmp_path / "run")
    assert (run.name, run.status, run.last_step) == ("other", "closed", 50)


def write_temporary_files(run: Path, names: list[str]) -> list[Path]:
    paths = [(run / name).with_name(temporary_name(Path(name).name)) for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("of a file")
    return paths


@pytest.mark.parametrize("how", [repair, resumed])
def test_only_temporary_files_of_the_run_are_removed(
    tmp_path: Path, how: Callable[[Path], object]
) -> None:
    run = make_run(tmp_path / "run")
    ours = [
        "run.json",
        ".uploaded.json",
        "layers/000001.parquet",
        "metrics/1000000.parquet",
        "overview/3/000000-000015.parquet",
    ]
    others = [
        "mine",
        "ckpt/model.pt",
        "layers/mine.parquet",
        "layers/old/000001.parquet",
        "overview/mine/000000-000015.parquet",
        "inner/run.json",
        "inner/layers/000000.parquet",
        ".replaced/000001/layers/000000.parquet",
    ]
    removed, others_left = write_temporary_files(run, ours), write_temporary_files(run, others)
    how(run)
    assert not [path for path in removed if path.exists()]
    assert {path.read_text() for path in others_left} == {"of a file"}


@pytest.mark.parametrize("resume", [False, True])
def test_a_link_in_place_of_a_temporary_file_is_not_followed(
    tmp_path: Path, *, resume: bool
) -> None:
    run, precious = tmp_path / "run", tmp_path / "precious"
    precious.write_text("precious")
    if resume:
        make_run(run, close=False)
        (run / "layers" / temporary_name("000001.parquet")).symlink_to(precious)
    run.mkdir(exist_ok=True)
    (run / temporary_name("run.json")).symlink_to(precious)
    writer = resumed(run)
    write(writer, 51, 60)
    writer.close(writer.info)
    assert precious.read_text() == "precious"


def test_copies_of_a_rollback_are_not_written_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    writer = RunWriter(tmp_path / "run", run_info(layers=["a"]))
    write(writer, 1, 4)
    (tmp_path / "run" / ".replaced").symlink_to(outside)
    with pytest.raises(RunError, match="replaced' is a symbolic link"):
        writer.rollback(2, {})
    writer.close(writer.info)
    assert not list(outside.iterdir())
    assert len(trustlens.Run(tmp_path / "run").layers()) == 4
