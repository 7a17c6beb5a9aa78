"""The script that prints the values in the table of the sample runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.support.runs import make_run

SCRIPT = Path(__file__).parents[2] / "sample_runs" / "summary.py"


def test_it_prints_the_results_of_runs(tmp_path: Path) -> None:
    ratio = np.full((40, 4), 0.5)
    ratio[0] = [0.1, 0.2, 0.3, 0.4]
    ratio[30, 2] = 7.5
    accuracy = np.full(40, 0.9)
    accuracy[20], accuracy[39] = 0.95, 0.925
    loss = np.full(40, 0.5)
    loss[10], loss[11] = 0.25, np.nan
    make_run(
        tmp_path / "runs" / "one", steps=40, layers=4,
        values={"trust_ratio": ratio}, metrics={"loss": loss, "test_accuracy": accuracy},
    )  # fmt: skip
    command = [sys.executable, str(SCRIPT), str(tmp_path / "runs")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.startswith("one\n")
    assert "lowest 0.25 at step 11" in printed
    assert "92.50 % at the end, best 95.00 % at step 21" in printed
    assert "0.1 to 0.4 at step 1, highest 7.5 at step 31 (block1.weight)" in printed
    assert "no anomalies" in printed


def test_a_run_without_a_trust_ratio_is_printed(tmp_path: Path) -> None:
    metrics = {"loss": np.ones(40), "test_accuracy": np.ones(40)}
    make_run(tmp_path / "one", steps=40, values={"trust_ratio": None}, metrics=metrics)
    command = [sys.executable, str(SCRIPT), str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "trust ratio   not recorded" in printed


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    for arguments, message in (([], "usage:"), ([str(tmp_path / "none")], "does not exist")):
        command = [sys.executable, str(SCRIPT), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert message in done.stderr
