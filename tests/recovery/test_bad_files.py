"""Damaged and hostile files: a clear error, no crash, and nothing outside of the run is read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import trustlens
from trustlens.errors import RunError
from trustlens.store.layout import SCHEMAS, journal_path, sealed_path
from trustlens.store.segments.contents import read_whole

EXAMPLES = int(os.environ.get("TRUSTLENS_EXAMPLES", "300"))
"""Number of hostile inputs to try; 21,000 were tried once."""

Make = Callable[..., Path]


def read_all(path: Path) -> None:
    run = trustlens.Run(path)
    run.layers()
    run.downsample("grad_norm")


@pytest.fixture(autouse=True)
def _time_limit() -> Iterator[None]:
    """Fail instead of waiting forever for a pipe that was opened."""

    def fail(*_: Any) -> None:
        raise AssertionError("waited too long")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(600 + EXAMPLES // 10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_hostile_files_only_raise_trustlens_errors(tmp_path: Path) -> None:
    """The process has a memory limit, so that reading which takes too much memory fails."""
    fuzz = Path(__file__).parents[1] / "support" / "fuzz.py"
    done = subprocess.run(
        [sys.executable, "-W", "error", str(fuzz), str(tmp_path / "run"), "0", str(EXAMPLES)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_parquet_bomb_is_not_decompressed(synthetic_run: Make) -> None:
    path = synthetic_run("run")
    zeros = pa.table({"step": np.zeros(1 << 25, np.int64)})
    pq.write_table(zeros, sealed_path(path, "layers", 0), compression="zstd")
    run = trustlens.Run(path)
    sample = partial(run.sample, ["grad_norm"], 3)
    for read in (run.layers, sample, partial(run.downsample, "grad_norm")):
        with pytest.raises(RunError, match="claims 33,554,432 rows"):
            read()


def test_an_arrow_bomb_is_not_decompressed(tmp_path: Path) -> None:
    path = tmp_path / "journal.arrow"
    schema = SCHEMAS["steps"]
    count = 1 << 20
    rows = pa.table(
        {
            "step": np.zeros(count, np.int64),
            "time": pa.array(np.zeros(count, np.int64)).cast(schema.field("time").type),
            "skipped": np.zeros(count, bool),
        },
        schema=schema,
    )
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with (
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_stream(file, schema, options=options) as out,
    ):
        out.write_table(rows)
    assert path.stat().st_size < count // 100
    before = pa.total_allocated_bytes()
    found, torn = read_whole(path, "steps")
    assert found.num_rows == 0
    assert torn == path.stat().st_size
    assert pa.total_allocated_bytes() < before + (1 << 20)


def test_a_json_bomb_is_not_read(synthetic_run: Make) -> None:
    path = synthetic_run("run")
    with (path / "run.json").open("r+b") as file:
        file.truncate(1 << 40)  # a sparse file
    with pytest.raises(RunError, match="more than trustlens writes"):
        trustlens.open_run(path)


def test_a_link_out_of_the_run_is_not_followed(synthetic_run: Make, tmp_path: Path) -> None:
    other = synthetic_run("other", seed=5)
    for inside in ("run.json", "layers/000000.parquet", "layers", "overview", "overview/3"):
        path = synthetic_run(f"run-{inside.replace('/', '-')}")
        kept = (path / inside).rename(tmp_path / f"kept-{path.name}")
        (path / inside).symlink_to(other / inside)
        with pytest.raises(RunError, match="symbolic link"):
            read_all(path)
        (path / inside).unlink()
        kept.rename(path / inside)
        assert len(trustlens.open_run(path).layers()) == 400
    outside = tmp_path / "link"
    outside.symlink_to(path)  # a link to the whole run is the user's own
    assert len(trustlens.open_run(outside).layers()) == 400


def test_a_journal_that_is_a_link_is_not_followed(synthetic_run: Make) -> None:
    path, other = synthetic_run("run", close=False), synthetic_run("other", close=False, seed=5)
    journal = journal_path(path, "layers", 0)
    journal.unlink()
    journal.symlink_to(journal_path(other, "layers", 0))
    with pytest.raises(RunError, match="symbolic link"):
        trustlens.Run(path).layers()


@pytest.mark.parametrize(
    "place", ["run.json", "layers/000000.parquet", "journal/layers-000001.arrow", ".lock"]
)
def test_a_pipe_is_not_opened(synthetic_run: Make, place: str) -> None:
    path = synthetic_run("run")
    (path / place).parent.mkdir(exist_ok=True)
    (path / place).unlink(missing_ok=True)
    os.mkfifo(path / place)
    signal.alarm(20)
    if place == ".lock":
        assert len(trustlens.open_run(path).layers()) == 400
    else:
        with pytest.raises(RunError, match="not a regular file"):
            trustlens.open_run(path).layers()


def test_layer_names_that_are_paths_are_not_opened(synthetic_run: Make, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    os.mkfifo(outside)  # opening it would block
    names = [str(outside), "../outside", "../../etc/passwd"]
    path = synthetic_run("run", layers=names)
    signal.alarm(20)
    run = trustlens.open_run(path)
    assert sorted(run.layers()["layer"].unique()) == sorted(names)
    assert run.downsample("grad_norm", 3).rows.any()
    trustlens.export.to_tensorboard(run, tmp_path / "tb")


@pytest.mark.parametrize("table", ["layers", "steps", "metrics", "histograms"])
@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1PAR1", b"\0" * 4096, b"hello\n" * 99])
def test_a_foreign_file_is_named(synthetic_run: Make, table: str, content: bytes) -> None:
    path = synthetic_run("run")
    sealed_path(path, table, 0).write_bytes(content)
    with pytest.raises(RunError, match=f"{table}/000000.parquet' is damaged or not a table"):
        getattr(trustlens.Run(path), table)()


def test_a_foreign_table_is_named(synthetic_run: Make) -> None:
    path = synthetic_run("run")
    pq.write_table(pa.table({"step": ["one"], "layer": [3]}), sealed_path(path, "layers", 0))
    with pytest.raises(RunError, match="damaged or not a table"):
        trustlens.Run(path).layers()
