"""Sealing what a dead process left: nothing that it flushed is lost, and nothing changes twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pandas as pd
import pytest

import trustlens
from trustlens.cli import main

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
    """A run whose process was killed once seven steps were flushed."""
    run = tmp_path / "run"
    command = [sys.executable, "-c", textwrap.dedent(RECORDING), str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "flushed\n"
        assert main(["repair", str(run)]) == 2  # it lives
        assert "already holds a run that process" in capsys.readouterr().err
        os.kill(process.pid, signal.SIGKILL)
    return run


def tables(run: Path) -> list[pd.DataFrame]:
    opened = trustlens.open_run(run)
    made = [opened.layers(), opened.steps(), opened.metrics()]
    return [rows.sort_values(list(rows)[:2]).reset_index(drop=True) for rows in made]


def test_what_was_flushed_is_sealed(left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tables(left)
    assert [len(rows) for rows in before] == [14, 7, 7]
    assert main(["repair", str(left)]) == 0
    assert "layers: 14 rows sealed" in capsys.readouterr().out
    for one, other in zip(tables(left), before, strict=True):
        pd.testing.assert_frame_equal(one, other)
    assert len(pd.read_parquet(left / "layers")) == 14
    assert not (left / "journal").exists()
    assert trustlens.open_run(left).status == "interrupted"
    content = {path: path.read_bytes() for path in left.rglob("*") if path.is_file()}
    assert main(["repair", str(left)]) == 0
    assert "needs no repair" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in left.rglob("*") if path.is_file()} == content


def test_a_torn_batch_is_left_out_and_told(left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = left / "journal" / "layers-000000.arrow"
    journal.write_bytes(journal.read_bytes()[:-100])
    assert main(["repair", str(left)]) == 1
    out = capsys.readouterr().out
    assert "layers: 12 rows sealed" in out
    assert "no whole rows" in out
    assert sorted(set(trustlens.open_run(left).layers()["step"])) == [1, 2, 3, 4, 5, 6]


def test_a_repaired_run_is_gone_on_with(left: Path) -> None:
    assert main(["repair", str(left)]) == 0
    code = RECORDING.replace("sys.argv[1])", "sys.argv[1], resume=True)")
    code = code.replace("time.sleep(60)", "recorder.close()")
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), left], check=True)
    run = trustlens.open_run(left)
    assert run.status == "closed"
    assert "repaired" not in run.info.recorder
