"""The files of a run: read by other tools, while they are written, and after damage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

import trustlens
from tests.support.runs import layers_table, metrics_table, run_info, steps_table, synthetic_values
from trustlens.cli import main
from trustlens.errors import RunError, UsageError
from trustlens.schema import COUNTS, RECORDED, TABLES
from trustlens.store import reader as store_reader
from trustlens.store import table_writer as store_table
from trustlens.store.layout import sealed_path
from trustlens.store.location import LocalLocation
from trustlens.store.reader import read_table
from trustlens.store.run_info import read_info
from trustlens.store.segments.leftovers import seal_leftovers
from trustlens.store.writer import RunWriter

Make = Callable[..., Path]


def test_pandas_duckdb_and_polars_read_the_files(synthetic_run: Make) -> None:
    path = synthetic_run("run", layers=3, steps=20, seed=7)
    expected = synthetic_values(20, 3, seed=7)
    frames = {
        "pandas": pd.read_parquet(path / "layers"),
        "duckdb": duckdb.sql(f"select * from '{path}/layers/*.parquet'").df(),
        "polars": pl.read_parquet(str(path / "layers")).to_pandas(),
    }
    for reader, frame in frames.items():
        assert list(frame.columns) == ["step", "layer", *RECORDED], reader
        for index, layer in enumerate(["block0.weight", "block0.bias", "block1.weight"]):
            rows = frame[frame["layer"].astype(str) == layer]
            assert rows["step"].tolist() == list(range(1, 21)), reader
            for name in RECORDED:
                kind = np.int64 if name in COUNTS else np.float32
                np.testing.assert_array_equal(
                    rows[name].to_numpy(), expected[name][:, index].astype(kind), err_msg=reader
                )
    for table in TABLES:
        pd.read_parquet(path / table)


def test_segments_are_sorted_by_layer_then_step_and_split_by_byte(synthetic_run: Make) -> None:
    path = synthetic_run("run", layers=["b", "a"], steps=5)
    frame = pd.read_parquet(path / "layers")
    assert frame["layer"].astype(str).tolist() == ["a"] * 5 + ["b"] * 5
    assert frame["step"].tolist() == [1, 2, 3, 4, 5] * 2
    group = pq.ParquetFile(sealed_path(path, "layers", 0)).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert "BYTE_STREAM_SPLIT" in columns["trust_ratio"].encodings
    assert columns["trust_ratio"].compression == "ZSTD"


@pytest.mark.parametrize("names", [["a\0", "a"], ["a", "a\0"], ["b\0", "a", "b", "b\0\0"]])
def test_names_that_end_in_nul_are_found(tmp_path: Path, names: list[str]) -> None:
    writer = RunWriter(tmp_path, run_info(layers=names), segment_rows=10 * len(names))
    for step in range(1, 41):
        _write_steps(writer, step, step, names)
    writer.close(writer.info)
    run = trustlens.open_run(tmp_path)
    for name in names:
        assert len(run.layers(["weight_norm"], layers=[name])) == 40
        assert run.downsample("weight_norm", layers=[name]).rows.sum() == 40


def test_one_long_name_among_many_takes_no_memory(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, run_info())
    names = [*map(str, range(300)), "y" * 200_000]
    writer.append("metrics", metrics_table(np.arange(1, 2), dict.fromkeys(names, np.ones(1))))
    tracemalloc.start()
    writer.close(writer.info)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6  # as 301 texts of the longest width: 240 MB
    assert set(read_table(tmp_path, "metrics")["name"].to_pylist()) == set(names)


def test_a_run_json_with_lone_surrogates(synthetic_run: Make) -> None:
    path = synthetic_run("run", layers=["a"])
    file = path / "run.json"
    file.write_text(file.read_text().replace('"a"', '"\\udcff"').replace('"run"', '"\\ud800"'))
    run = trustlens.Run(path)
    assert (run.name, run.layer_names) == (r"\ud800", [r"\udcff"])
    assert main(["list", str(path.parent)]) == 1  # it has rows of a layer "a"


def test_a_closed_run_has_only_parquet_and_run_json(synthetic_run: Make) -> None:
    path = synthetic_run("run")
    files = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    tables = {f"{table}/000000.parquet" for table in TABLES}
    assert files == {"run.json", *tables, "overview/3/000000-000000.parquet"}
    assert not (path / "journal").exists()


def _write_steps(writer: RunWriter, first: int, last: int, names: list[str]) -> None:
    steps = np.arange(first, last + 1)
    values = {"weight_norm": np.repeat(steps[:, None], len(names), axis=1)}
    writer.append("layers", layers_table(steps, names, values))
    writer.append("steps", steps_table(steps))
    writer.flush()


def test_a_reader_sees_each_row_once_while_segments_are_sealed(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    writer = RunWriter(tmp_path, run_info(layers=names), segment_rows=30)
    writing = threading.Event()
    writing.set()
    seen: list[int] = []
    wrong: list[str] = []

    def read() -> None:
        while writing.is_set():
            table = read_table(tmp_path, "layers", ["step", "layer"])
            pairs = list(zip(table["step"].to_pylist(), table["layer"].to_pylist(), strict=True))
            if len(set(pairs)) != len(pairs):
                wrong.append("a row was seen twice")
            if len(pairs) % len(names) or (seen and len(pairs) < seen[-1]):
                wrong.append(f"{len(pairs)} rows after {seen[-1:]}")
            seen.append(len(pairs))

    thread = threading.Thread(target=read)
    thread.start()
    for step in range(1, 301):
        _write_steps(writer, step, step, names)
    writer.close(writer.info.closed_at("2026-11-01T00:00:00+00:00"))
    writing.clear()
    thread.join()
    assert not wrong
    assert len(seen) > 5
    assert read_table(tmp_path, "layers").num_rows == 900
    assert len(list((tmp_path / "layers").iterdir())) == 30


class InterruptedReader:
    """Calls ``happens`` just before the nth operation of a reader."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.happens: Callable[[], None] = lambda: None
        self.before = self.operations = self.listings = 0
        for name in ("journal_numbers", "read_journal"):
            monkeypatch.setattr(store_reader, name, self._hooked(store_reader, name))
        for name in ("names", "entries", "open"):
            monkeypatch.setattr(LocalLocation, name, self._hooked(LocalLocation, name))

    def _hooked(self, owner: Any, name: str) -> Callable[..., Any]:
        original = getattr(owner, name)

        def hooked(*given: Any) -> Any:
            self.operations += 1
            self.listings += name == "journal_numbers"
            if self.operations == self.before:
                self.happens()
            return original(*given)

        return hooked

    def read(self, directory: Path, before: int) -> tuple[list[tuple[int, float]], bool]:
        """Return steps and values in order, and whether the reader came to the nth operation."""
        self.before, self.operations, self.listings = before, 0, 0
        table = read_table(directory, "layers", ["step", "weight_norm"])
        reached, self.before = self.operations >= before, 0
        return sorted(zip(*(each.to_pylist() for each in table.columns), strict=True)), reached


@pytest.mark.parametrize("what", ["a seal", "two seals", "a rollback", "a repair"])
def test_a_concurrent_reader_sees_a_consistent_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    moment, reached, reader = 0, True, InterruptedReader(monkeypatch)
    while reached:
        moment += 1
        writer = RunWriter(tmp_path / f"{moment}", run_info(layers=["a"]), segment_rows=4)
        for step in range(1, 15):
            _write_steps(writer, step, step, ["a"])  # three segments, and two steps in a journal
        old = [(step, float(step)) for step in range(1, 15)]
        new = old + [(step, float(step)) for step in range(15, 24)]
        least = len(old)
        if what == "a rollback":
            new, least = old[:6] + [(step, 50.0 + step) for step in range(7, 14)], 6

        def happens(writer: RunWriter = writer) -> None:
            if what == "a repair":
                seal_leftovers(writer.directory, "layers")
            elif what == "a rollback":
                writer.rollback(6, {})
                steps = np.arange(7, 14)
                rows = {"weight_norm": 50.0 + steps[:, None]}
                writer.append("layers", layers_table(steps, ["a"], rows))
                writer.flush()
            else:
                for step in range(15, 18 if what == "a seal" else 24):
                    _write_steps(writer, step, step, ["a"])

        reader.happens = happens
        found, reached = reader.read(writer.directory, moment)
        assert found in (old, *(new[:end] for end in range(least, len(new) + 1)))
        assert reader.listings == 1 or what == "a rollback"
        if what != "a repair":
            writer.close(writer.info)
    assert moment > 8  # the operations of a reader


def test_a_file_is_synced_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        operations.append("fsync")
        fsync(descriptor)

    def noted_replace(path: Path, target: Path) -> Path:
        operations.append(target.name)
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    writer = RunWriter(tmp_path, run_info())
    writer.close(writer.info)
    sealed = ["fsync", "000000.parquet"]
    overview = ["fsync", "000000-000000.parquet"]
    assert operations == ["fsync", "run.json", *sealed * 4, *overview, "fsync", "run.json"]


def test_a_truncated_journal_gives_whole_batches_and_no_error(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, run_info(layers=["a", "b"]))
    for step in range(1, 4):
        _write_steps(writer, step, step, ["a", "b"])
    journal = tmp_path / "journal" / "layers-000000.arrow"
    whole = journal.read_bytes()
    found: set[int] = set()
    for size in range(0, len(whole), 97):
        journal.write_bytes(whole[:size])
        steps = read_table(tmp_path, "layers", ["step"])["step"].to_pylist()
        assert steps in ([], [1, 1], [1, 1, 2, 2], [1, 1, 2, 2, 3, 3])
        found.add(len(steps))
    assert {0, 2, 4} <= found


def test_flushed_rows_survive_kill_9(tmp_path: Path) -> None:
    run = tmp_path / "run"
    code = f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        import torch, trustlens
        model = torch.nn.Linear(3, 2)
        optimizer = torch.optim.Adam(model.parameters())
        recorder = trustlens.record(optimizer, {str(run)!r}, model=model)
        for _ in range(7):
            model(torch.ones(1, 3)).sum().backward()
            optimizer.step()
        recorder.log(loss=1.5)
        recorder.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -signal.SIGKILL
    read = trustlens.open_run(run)
    assert read.matrix("nonfinite").index.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert len(read.layers()) == 14
    assert read.metrics()["value"].tolist() == [1.5]
    assert read.status == "interrupted"


def test_a_seal_that_fails_leaves_no_torn_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer = RunWriter(tmp_path, run_info(layers=["a"]))
    _write_steps(writer, 1, 3, ["a"])

    def torn(table: Any, where: Path, **options: Any) -> None:
        where.write_bytes(b"PAR1 and then the disk was full")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", torn)
    writer.close(writer.info)
    assert "No space" in caplog.text
    assert not list((tmp_path / "layers").iterdir())
    assert trustlens.open_run(tmp_path).matrix("nonfinite").index.tolist() == [1, 2, 3]


def test_a_journal_that_cannot_be_removed_is_not_read_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RunWriter(tmp_path, run_info(layers=["a"]), segment_rows=3)

    def in_use(*_: Any, **__: Any) -> None:  # as on Windows while a reader has the file open
        raise PermissionError(13, "in use")

    monkeypatch.setattr(Path, "unlink", in_use)
    _write_steps(writer, 1, 3, ["a"])
    _write_steps(writer, 4, 4, ["a"])
    assert sorted(read_table(tmp_path, "layers", ["step"])["step"].to_pylist()) == [1, 2, 3, 4]
    writer.close(writer.info.closed_at("2026-11-01T00:00:00+00:00"))
    assert sorted(read_table(tmp_path, "layers", ["step"])["step"].to_pylist()) == [1, 2, 3, 4]


def test_a_table_is_sealed_when_it_grows_large_in_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_table, "SEGMENT_BYTES", 2000)
    writer = RunWriter(tmp_path, run_info(layers=["a"]))
    _write_steps(writer, 1, 3, ["a"])
    assert not sealed_path(tmp_path, "layers", 0).exists()
    _write_steps(writer, 4, 40, ["a"])
    assert sealed_path(tmp_path, "layers", 0).exists()
    _write_steps(writer, 41, 43, ["a"])
    assert not sealed_path(tmp_path, "layers", 1).exists()


@pytest.mark.parametrize("broken", ["mkdir", "open"])
def test_a_directory_that_cannot_be_written_raises_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, broken, refuse)
    with pytest.raises(UsageError, match=r"cannot be written \(Read-only file system\)") as caught:
        RunWriter(tmp_path, run_info())
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_a_directory_of_another_user_raises_usage_error(tmp_path: Path, mode: int) -> None:
    code = f"""
        import os, pathlib, tempfile
        # The other user may not read these modules (platformdirs 4.0 imports configparser late).
        import configparser, pandas, trustlens.analysis.diagnose, trustlens.cli
        from trustlens.errors import UsageError
        from trustlens.store.run_info import RunInfo
        from trustlens.store.writer import RunWriter
        place = pathlib.Path(tempfile.mkdtemp())
        place.chmod({mode})
        pid = os.fork()
        if pid == 0:
            os.setuid(65534)
            try:
                RunWriter(place, RunInfo("x", ""))
            except UsageError as error:
                print(error, flush=True)
            print(trustlens.cli.main(["list", str(place)]), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        place.rmdir()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert "cannot be written (Permission denied)" in done.stdout
    if mode == 0o700:
        assert done.stdout.endswith("2\n")
        assert "cannot be read (Permission denied)" in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_damaged_segment_is_named(synthetic_run: Make) -> None:
    path = synthetic_run("run")
    file = sealed_path(path, "layers", 0)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(RunError, match=r"000000\.parquet' is damaged"):
        trustlens.open_run(path).layers()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no run"),
        ("[1, 2]", "no schema_version"),
        ("{nonsense", "not JSON"),
        ('{"schema_version": 2}', "reads up to 1: pip install -U trustlens-optim"),
        ('{"schema_version": 1}', "not a run.json that trustlens understands"),
        ('{"schema_version": 1, "name": 1, "created": 2, "optimizers": 3}', "understands"),
    ],
)
def test_a_directory_without_a_valid_run_raises_run_error(
    tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunError, match=message) as caught:
        trustlens.open_run(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_directory_and_a_file_raise_run_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no directory"):
        trustlens.open_run(tmp_path / "nowhere")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(RunError, match="is a file"):
        trustlens.open_run(file)


def test_a_directory_that_holds_a_run_or_is_a_file_is_not_written_into(
    synthetic_run: Make, tmp_path: Path
) -> None:
    path = synthetic_run("run")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(UsageError, match="already holds a run"):
        RunWriter(path, run_info())
    assert before == {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    (path / "run.json").unlink()  # its old segments would be read with the new ones
    with pytest.raises(UsageError, match="already holds a run"):
        RunWriter(path, run_info())
    file = tmp_path / "file"
    file.write_text("")
    for place in (file, file / "below"):
        with pytest.raises(UsageError, match="give a directory"):
            RunWriter(place, run_info())


def test_run_json_round_trip(tmp_path: Path) -> None:
    info = run_info(layers=["a", "b"])
    RunWriter(tmp_path, info)
    assert read_info(tmp_path) == info
    raw = json.loads((tmp_path / "run.json").read_text())
    assert raw["schema_version"] == 1
    assert [layer["name"] for layer in raw["layers"]] == ["a", "b"]
