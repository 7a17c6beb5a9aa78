"""What lies in a run's place and is not the run's: it is neither written nor taken away."""

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
from support.runs import layers_table, make_run, run_info, steps_table
from trustlens.errors import RunError
from trustlens.store.atomic_write import temporary_name
from trustlens.store.repair import repair
from trustlens.store.writer import RunWriter

posix = pytest.mark.skipif(sys.platform == "win32", reason="there are no locks to tell it by")


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
def test_another_run_in_the_place_of_one_that_was_removed(tmp_path: Path, *, closed: bool) -> None:
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
        lambda: old.rewind(3, {}),
        lambda: old.close(old.info.closed_at("now")),
    ):
        with pytest.raises(OSError, match="was removed or replaced while it was being recorded"):
            work()
    assert contents(run) == before


@posix
def test_it_ends_a_recording_with_one_warning(
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


def put_unfinished(run: Path, names: list[str]) -> list[Path]:
    made = [(run / name).with_name(temporary_name(Path(name).name)) for name in names]
    for path in made:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("of a file")
    return made


@pytest.mark.parametrize("how", [repair, resumed])
def test_only_unfinished_files_of_the_run_are_taken_away(
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
    gone, kept = put_unfinished(run, ours), put_unfinished(run, others)
    how(run)
    assert not [path for path in gone if path.exists()]
    assert {path.read_text() for path in kept} == {"of a file"}


@pytest.mark.parametrize("resume", [False, True])
def test_a_link_in_the_place_of_an_unfinished_file_is_not_written_through(
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


def test_what_a_rewind_replaces_is_not_kept_behind_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    writer = RunWriter(tmp_path / "run", run_info(layers=["a"]))
    write(writer, 1, 4)
    (tmp_path / "run" / ".replaced").symlink_to(outside)
    with pytest.raises(RunError, match="replaced' is a symbolic link"):
        writer.rewind(2, {})
    writer.close(writer.info)
    assert not list(outside.iterdir())
    assert len(trustlens.Run(tmp_path / "run").layers()) == 4
