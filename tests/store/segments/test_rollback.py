"""Rollback: rows are removed and recorded again, and readers see each row once."""

from __future__ import annotations

import errno
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.support.runs import layers_table, run_info, steps_table
from trustlens.errors import RunError
from trustlens.store import writer as store_writer
from trustlens.store.layout import journal_path, sealed_path
from trustlens.store.reader import read_table
from trustlens.store.run_info import RecordingInfo, RunInfo, read_info
from trustlens.store.table_writer import TableWriter
from trustlens.store.writer import RunWriter

NAMES = ["a", "b", "c"]


def write(writer: RunWriter, first: int, last: int) -> None:
    for step in range(first, last + 1):
        steps = np.array([step])
        values = {"weight_norm": np.full((1, 3), 1000 * writer_number(writer) + step)}
        writer.append("layers", layers_table(steps, NAMES, values))
        writer.append("steps", steps_table(steps))
        writer.flush()


def writer_number(writer: RunWriter) -> int:
    """Return the number of rollbacks so far, which the values of rows contain."""
    replaced = writer.directory / ".replaced"
    return len(list(replaced.iterdir())) if replaced.exists() else 0


def resumed(directory: Path, segment_rows: int = 9) -> RunWriter:
    return RunWriter(directory, run_info(), resume=lambda old: old, segment_rows=segment_rows)


def rows(directory: Path) -> dict[tuple[int, str], float]:
    table = read_table(directory, "layers", ["step", "layer", "weight_norm"]).to_pylist()
    found = {(row["step"], row["layer"]): row["weight_norm"] for row in table}
    assert len(found) == len(table)
    return found


def test_only_segments_with_removed_rows_are_replaced_and_copies_are_kept(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, run_info(layers=NAMES), segment_rows=9)
    write(writer, 1, 10)  # three segments of three steps, and one step in the journal
    old = {n: sealed_path(tmp_path, "layers", n).read_bytes() for n in range(3)}
    kept = writer.rollback(5, {})
    assert kept == tmp_path / ".replaced" / "000001"
    assert {str(p.relative_to(kept)) for p in kept.rglob("*.parquet")} == {
        "layers/000001.parquet",
        "layers/000002.parquet",
        "layers/000003.parquet",
        "steps/000000.parquet",
        "steps/000001.parquet",
    }
    for n in (1, 2):
        assert (kept / "layers" / f"{n:06d}.parquet").read_bytes() == old[n]
    assert sealed_path(tmp_path, "layers", 0).read_bytes() == old[0]
    assert not journal_path(tmp_path, "layers", 3).exists()
    write(writer, 6, 8)
    assert rows(tmp_path) == {
        (step, name): step + 1000 * (step > 5) for step in range(1, 9) for name in NAMES
    }
    writer.close(writer.info)
    assert sorted(read_table(tmp_path, "steps")["step"].to_pylist()) == list(range(1, 9))
    assert len(pd.read_parquet(tmp_path / "layers")) == 24
    assert duckdb.sql(f"select count(*) from '{tmp_path}/layers/*.parquet'").fetchall() == [(24,)]
    assert pq.read_table(tmp_path / "layers").num_rows == 24


def test_a_rollback_without_later_rows_changes_nothing(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, run_info(layers=NAMES), segment_rows=9)
    write(writer, 1, 4)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert writer.rollback(4, {}) is None
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    writer.close(writer.info)


def test_single_layers_may_be_rolled_back_further(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, run_info(layers=NAMES), segment_rows=9)
    write(writer, 1, 8)
    writer.rollback(6, {"b": 2, "c": 7})
    found = rows(tmp_path)
    last = {name: max(step for step, layer in found if layer == name) for name in NAMES}
    assert last == {"a": 6, "b": 2, "c": 7}
    assert max(read_table(tmp_path, "steps")["step"].to_pylist()) == 6
    writer.close(writer.info)


def test_new_rows_go_to_segments_with_new_numbers(tmp_path: Path) -> None:
    """A reader may have listed the segments before the rollback, and read the journal after it."""
    writer = RunWriter(tmp_path, run_info(layers=NAMES), segment_rows=9)
    write(writer, 1, 3)
    writer.append("layers", layers_table(np.array([4]), ["a"], {}))
    writer.flush()
    assert journal_path(tmp_path, "layers", 1).exists()
    writer.rollback(4, {"b": 1})
    assert not journal_path(tmp_path, "layers", 1).exists()
    assert {step for step, layer in rows(tmp_path) if layer == "a"} == {1, 2, 3, 4}
    writer.close(writer.info)


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    writer = RunWriter(tmp_path, run_info(layers=NAMES), segment_rows=9)
    write(writer, 1, 3)
    kept = writer.rollback(1, {})
    assert kept is not None
    assert len(pd.read_parquet(kept / "layers")) == 9
    assert len(rows(tmp_path)) == 3
    writer.close(writer.info)


def test_concurrent_readers_see_each_row_once_and_no_error(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, run_info(layers=NAMES), segment_rows=12)
    writing = threading.Event()
    writing.set()
    wrong: list[str] = []
    seen: list[int] = []
    by_duckdb: list[int] = []

    def read() -> None:
        while writing.is_set():
            try:
                seen.append(len(rows(tmp_path)))
            except (AssertionError, RunError) as error:
                wrong.append(repr(error))
            # DuckDB opens a file twice in a query, and raises if it was replaced in between.
            with suppress(duckdb.Error):
                query = f"select step, layer from '{tmp_path}/layers/*.parquet'"
                found = duckdb.connect().sql(query).fetchall()
                by_duckdb.append(len(found))
                if len(set(found)) != len(found):
                    wrong.append(f"twice: {found}")

    write(writer, 1, 8)  # something is sealed: DuckDB raises if no file matches
    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for step in range(6, 30, 3):
        write(writer, step + 3, step + 11)
        writer.rollback(step + 3, {})
        write(writer, step + 4, step + 5)
        writer.rollback(step + 2, {})
    writing.clear()
    for thread in threads:
        thread.join()
    writer.close(writer.info)
    assert not wrong
    assert len(seen) > 5
    assert by_duckdb


def test_journals_of_a_dead_process_are_sealed_up_to_their_last_whole_batch(
    tmp_path: Path,
) -> None:
    writer = RunWriter(tmp_path, run_info(layers=NAMES), segment_rows=9)
    write(writer, 1, 5)
    journal = journal_path(tmp_path, "layers", 1)
    content = journal.read_bytes()
    journal.write_bytes(content[:-200])
    writer._lock.release()  # as when the process dies
    again = resumed(tmp_path)
    assert not journal.exists()
    assert {step for step, _ in rows(tmp_path)} == {1, 2, 3, 4}
    again.append("layers", layers_table(np.array([5]), NAMES, {}))
    again.close(again.info)
    assert {p.name for p in (tmp_path / "layers").iterdir()} == {
        "000000.parquet",
        "000001.parquet",
        "000002.parquet",
    }
    assert {step for step, _ in rows(tmp_path)} == {1, 2, 3, 4, 5}
    assert not (tmp_path / "journal").exists()


def test_a_journal_that_is_sealed_already_is_not_sealed_again(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, run_info(layers=NAMES), segment_rows=9)
    write(writer, 1, 2)
    journal = journal_path(tmp_path, "layers", 0)
    content = journal.read_bytes()
    write(writer, 3, 3)
    journal.write_bytes(content)  # as if the process died before it removed the journal
    writer._lock.release()
    again = resumed(tmp_path)
    assert {step for step, _ in rows(tmp_path)} == {1, 2, 3}
    again.close(again.info)


def test_a_journal_without_a_whole_batch(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, run_info(layers=NAMES))
    write(writer, 1, 1)
    journal_path(tmp_path, "layers", 0).write_bytes(b"")
    writer._lock.release()
    again = resumed(tmp_path)
    again.close(again.info)
    assert rows(tmp_path) == {}
    assert len(pd.read_parquet(tmp_path / "layers")) == 0


@pytest.mark.parametrize("place", [slice(4, 200), slice(-8, None)], ids=["pages", "footer"])
def test_a_damaged_segment_is_named(tmp_path: Path, place: slice) -> None:
    writer = RunWriter(tmp_path, run_info(layers=NAMES), segment_rows=9)
    write(writer, 1, 6)
    path = sealed_path(tmp_path, "layers", 1)
    content = bytearray(path.read_bytes())
    content[place] = bytes(len(content[place]))
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"000001\.parquet' is damaged"):
        writer.rollback(2, {})
    assert path.read_bytes() == content
    writer._lock.release()


def test_an_interrupted_rollback_already_ends_the_run_at_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RunWriter(tmp_path, run_info(layers=NAMES), segment_rows=9)
    write(writer, 1, 8)
    replace, last = Path.replace, sealed_path(tmp_path, "layers", 2)

    def dies(path: Path, target: Path) -> Path:
        if target == last:
            raise OSError(5, "Input/output error")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", dies)
    with pytest.raises(OSError, match="Input/output"):
        writer.rollback(4, {})
    monkeypatch.undo()
    writer._lock.release()
    assert max(read_table(tmp_path, "steps")["step"].to_pylist()) == 4
    assert {step for step, _ in rows(tmp_path)} > {1, 2, 3, 4}
    again = resumed(tmp_path)
    again.rollback(4, {})
    again.close(again.info)
    assert {step for step, _ in rows(tmp_path)} == {1, 2, 3, 4}


MISSING = RecordingInfo(gaps=((2, 3), (6, 9)), passed_over=((12, 20),), torn={"layers": ((1, 30),)})


def with_missing_steps(info: RunInfo) -> RunInfo:
    return replace(info, recording=MISSING)


@pytest.mark.parametrize(
    ("step", "layers", "gaps", "torn"),
    [
        (7, {}, ((2, 3), (6, 7)), {"layers": ((1, 7),)}),
        (7, {"b": 4, "c": 6}, ((2, 3), (6, 7)), {"layers": ((1, 7),)}),
        (2, {}, ((2, 2),), {"layers": ((1, 2),)}),
        (0, {}, (), {}),
    ],
)
def test_steps_after_the_rollback_are_no_longer_missing(
    step: int, layers: dict[str, int], gaps: Any, torn: Any, tmp_path: Path
) -> None:
    before = with_missing_steps(run_info(layers=NAMES))
    writer = RunWriter(tmp_path, before)
    write(writer, 1, 10)
    writer.rollback(step, layers)
    left = RecordingInfo(gaps=gaps, torn=torn)
    assert read_info(tmp_path).recording == left
    write(writer, step + 1, step + 3)
    writer.close(before.closed_at("now", dropped=1))  # an info from before the rollback
    assert read_info(tmp_path).recording == replace(left, dropped=1)


def test_missing_steps_are_updated_after_the_rows_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the process dies in between, too many steps are listed as missing, not too few."""
    writer = RunWriter(tmp_path, with_missing_steps(run_info(layers=NAMES)), segment_rows=9)
    write(writer, 1, 10)
    steps_seen: list[int] = []
    original = store_writer.write_info

    def checking_write_info(directory: Path, info: RunInfo) -> None:
        steps_seen.extend(step for step, _ in rows(directory))
        assert read_info(directory).recording.gaps == MISSING.gaps
        original(directory, info)

    monkeypatch.setattr(store_writer, "write_info", checking_write_info)
    writer.rollback(5, {})
    assert set(steps_seen) == {1, 2, 3, 4, 5}
    monkeypatch.undo()
    writer.close(writer.info)


@pytest.mark.parametrize(("step", "gaps"), [(4, ()), (5, ()), (8, ((6, 8),))])
def test_a_rollback_while_the_disk_is_full(
    step: int, gaps: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RunWriter(tmp_path, run_info(layers=NAMES))
    write(writer, 1, 5)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(TableWriter, "_write_to_journal", full)
        write(writer, 6, 10)
    writer.rollback(step, {})
    write(writer, step + 1, step + 2)
    writer.close(writer.info)
    assert read_info(tmp_path).recording == RecordingInfo(gaps=gaps)
