"""Repair of an interrupted run: no flushed row is lost, and a second repair changes nothing."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import trustlens
from tests.support.runs import layers_table, metrics_table, run_info, steps_table
from trustlens.cli import main
from trustlens.schema import TABLES
from trustlens.store import repair as store_repair
from trustlens.store.gaps import missing
from trustlens.store.layout import SCHEMAS, journal_path
from trustlens.store.repair import repair
from trustlens.store.run_info import RecordingInfo, RunInfo, StepRanges, read_info, write_info
from trustlens.store.table_writer import TableWriter
from trustlens.store.writer import RunWriter

RECORDING = """
    import sys, time, torch, trustlens
    parameters = [torch.nn.Parameter(torch.ones(n)) for n in (3, 400)]
    optimizer = torch.optim.AdamW(parameters)
    recorder = trustlens.record(optimizer, sys.argv[1])
    for step in range(1, 8):
        for p in parameters:
            p.grad = torch.full_like(p, step)
        optimizer.step()
        recorder.log(loss=step)
        recorder.flush()
    print("flushed", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A run whose process was killed after seven steps were flushed."""
    run = tmp_path / "run"
    command = [sys.executable, "-c", textwrap.dedent(RECORDING), str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "flushed\n"
        assert main(["repair", str(run)]) == 2  # the process is still running
        assert "already holds a run that process" in capsys.readouterr().err
        os.kill(process.pid, signal.SIGKILL)
    return run


def tables(run: Path) -> list[pd.DataFrame]:
    opened = trustlens.open_run(run)
    frames = [opened.layers(), opened.steps(), opened.metrics()]
    return [rows.sort_values(list(rows)[:2]).reset_index(drop=True) for rows in frames]


def test_flushed_rows_are_sealed(left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tables(left)
    assert [len(rows) for rows in before] == [14, 7, 7]
    assert main(["repair", str(left)]) == 0
    assert "layers: recovered 14 rows" in capsys.readouterr().out
    for one, other in zip(tables(left), before, strict=True):
        pd.testing.assert_frame_equal(one, other)
    assert len(pd.read_parquet(left / "layers")) == 14
    assert not (left / "journal").exists()
    assert trustlens.open_run(left).status == "interrupted"
    content = {path: path.read_bytes() for path in left.rglob("*") if path.is_file()}
    assert main(["repair", str(left)]) == 0
    assert "needs no repair" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in left.rglob("*") if path.is_file()} == content


def test_a_torn_batch_is_discarded_and_reported(
    left: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = left / "journal" / "layers-000000.arrow"
    journal.write_bytes(journal.read_bytes()[:-100])
    assert main(["repair", str(left)]) == 1
    out = capsys.readouterr().out
    assert "layers: recovered 12 rows" in out
    assert re.search(r"layers: discarded \d+ bytes of an incomplete batch", out)
    assert sorted(set(trustlens.open_run(left).layers()["step"])) == [1, 2, 3, 4, 5, 6]
    assert main(["repair", str(left)]) == 0
    capsys.readouterr()
    assert main(["show", str(left)]) == 0
    assert "note: step 7 is missing: the process died before" in capsys.readouterr().out


def test_a_repaired_run_can_be_resumed(left: Path) -> None:
    assert main(["repair", str(left)]) == 0
    code = RECORDING.replace("sys.argv[1])", "sys.argv[1], resume=True)")
    code = code.replace("time.sleep(60)", "recorder.close()")
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), left], check=True)
    run = trustlens.open_run(left)
    assert run.status == "closed"
    assert run.info.recording.repaired is None


def torn(directory: Path, tables: list[str], **recorder: int) -> Path:
    """Write a run whose process died: twelve steps, a batch each, the last four torn in ``tables``.

    Step 9 was skipped.
    """
    info = run_info(layers=["a"])
    writer = RunWriter(directory, info.change_recording(**recorder))
    sizes: dict[str, int] = {}
    for step in range(1, 13):
        if step == 9:
            sizes = {table: journal_path(directory, table, 0).stat().st_size for table in tables}
        at = np.array([step])
        if step != 9:
            writer.append("layers", layers_table(at, ["a"], {}))
            writer.append("histograms", histogram(step))
        skipped = pa.array([step == 9])
        writer.append("steps", steps_table(at).set_column(2, SCHEMAS["steps"].field(2), skipped))
        writer.append("metrics", metrics_table(at, {"loss": np.ones(1)}))
    writer.flush()
    writer._lock.release()  # as when the process dies
    for table in tables:
        journal = journal_path(directory, table, 0)
        journal.write_bytes(journal.read_bytes()[: sizes[table] + 100])
    return directory


def histogram(step: int) -> pa.Table:
    row = {"step": step, "layer": "a", "quantity": "weight", "counts": [(0, 1)]}
    return pa.Table.from_pylist([row], schema=SCHEMAS["histograms"])


def sentences(gaps: dict[str, str]) -> list[str]:
    """Return the sentences about steps that are missing from tables."""
    return [
        f"{steps}: the process died before all of their rows of '{table}' were written"
        for table, steps in gaps.items()
    ]


def missing_sentences(directory: Path) -> list[str]:
    found = missing(directory, read_info(directory), last_step=lambda: 0, dead=True)
    return [sentence for sentence in found if "before all of" in sentence]


@pytest.mark.parametrize(
    ("tables", "recorder", "gaps"),
    [
        (["layers"], {}, {"layers": "steps 10 to 12 are missing"}),
        (["layers"], {"every": 10}, {"layers": "step 11 is missing"}),
        (["layers"], {"every": 20, "histograms_every": 10}, {"layers": "step 11 is missing"}),
        (["layers"], {"every": 20}, {}),
        (["histograms"], {}, {}),
        (["histograms"], {"histograms_every": 3}, {"histograms": "step 10 is missing"}),
        (["steps"], {}, {"steps": "steps 9 to 12 are missing"}),
        (["metrics"], {}, {"metrics": "steps 9 to 12 are missing"}),
        ([*TABLES], {"histograms_every": 1}, {}),  # no table shows which steps there were
        (
            ["layers", "metrics"],
            {},
            {"layers": "steps 10 to 12 are missing", "metrics": "steps 9 to 12 are missing"},
        ),
    ],
)
def test_missing_steps_of_a_torn_table_are_reported_before_and_after_a_repair(
    tables: list[str], recorder: dict[str, int], gaps: dict[str, str], tmp_path: Path
) -> None:
    run = torn(tmp_path, tables, **recorder)
    expected = sentences(gaps)
    assert missing_sentences(run) == expected
    assert {left.table for left in repair(run) if left.torn} == set(tables)
    assert missing_sentences(run) == expected
    repair(run)
    assert missing_sentences(run) == expected


def without_room(directory: Path, monkeypatch: pytest.MonkeyPatch, **recorder: int) -> Path:
    """Write a run whose process died while the disk was too full for all tables but `steps`."""
    info = run_info(layers=["a"]).change_recording(**recorder)
    writer = RunWriter(directory, info)

    def append(first: int, last: int) -> None:
        for step in range(first, last + 1):
            at = np.array([step])
            writer.append("layers", layers_table(at, ["a"], {}))
            if recorder.get("histograms_every"):
                writer.append("histograms", histogram(step))
            writer.append("steps", steps_table(at))
        writer.flush()

    original = TableWriter._write_to_journal

    def full(table: TableWriter, rows: pa.Table) -> None:
        if "counts" in rows.column_names or "grad_norm" in rows.column_names:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(table, rows)

    append(1, 10)
    with monkeypatch.context() as patch:
        patch.setattr(TableWriter, "_write_to_journal", full)
        append(11, 14)
    writer._lock.release()  # as when the process dies
    return directory


@pytest.mark.parametrize(
    ("recorder", "gaps"),
    [
        ({}, {"layers": "steps 11 to 14 are missing"}),
        ({"every": 3}, {"layers": "step 13 is missing"}),
        ({"every": 20}, {}),
        (
            {"histograms_every": 12},
            {"layers": "steps 11 to 14 are missing", "histograms": "step 13 is missing"},
        ),
    ],
)
def test_rows_lost_to_a_full_disk_are_reported_if_the_process_died(
    recorder: dict[str, int],
    gaps: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = without_room(tmp_path, monkeypatch, **recorder)
    expected = sentences(gaps)
    assert missing_sentences(run) == expected
    shutil.copytree(run, tmp_path / "resumed")
    resumed = tmp_path / "resumed"
    writer = RunWriter(resumed, run_info(), resume=lambda old: old)
    writer.rollback(14, {})
    writer.close(writer.info)
    for _ in range(2):
        repair(run)
        assert missing_sentences(run) == missing_sentences(resumed) == expected


def test_steps_that_were_not_due_are_not_reported_after_a_change_of_period(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = without_room(tmp_path, monkeypatch, every=20)

    def record_every_step(old: RunInfo) -> RunInfo:
        return replace(old, recording=RecordingInfo(every=1))

    RunWriter(
        run, run_info(), resume=record_every_step
    )._lock.release()  # it dies before its first step
    assert missing_sentences(run) == []


def test_steps_known_to_be_missing_are_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = without_room(tmp_path, monkeypatch)
    write_info(run, read_info(run).change_recording(gaps=((11, 13),)))
    (sentence,) = missing_sentences(run)
    assert sentence.startswith("step 14 is missing")


def test_missing_steps_are_written_before_the_journal_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = torn(tmp_path, ["layers"])

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store_repair, "seal_leftovers", interrupt)
    with pytest.raises(KeyboardInterrupt):
        repair(run)
    assert read_info(run).recording == RecordingInfo(torn={"layers": ((10, 12),)})
    assert journal_path(run, "layers", 0).exists()


@pytest.mark.parametrize(
    ("step", "gaps"), [(12, {"layers": ((10, 12),)}), (10, {"layers": ((10, 10),)}), (8, {})]
)
def test_resuming_without_a_repair_lists_the_missing_steps_too(
    step: int, gaps: dict[str, StepRanges], tmp_path: Path
) -> None:
    run = torn(tmp_path, ["layers"])
    writer = RunWriter(run, run_info(), resume=lambda old: old)
    assert read_info(run).recording.torn == {"layers": ((10, 12),)}
    writer.rollback(step, {})
    writer.close(writer.info)
    assert read_info(run).recording.torn == gaps
