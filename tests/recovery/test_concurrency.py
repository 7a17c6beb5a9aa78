"""Readers poll a run while it is written, sealed, killed, repaired and resumed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import trustlens
from tests.support.fuzz import make_interrupted_run, readers
from trustlens.store.repair import repair

SECONDS = float(os.environ.get("TRUSTLENS_SECONDS", "8"))
"""Seconds for which they poll; a minute was tried once."""

POLLING = Path(__file__).parents[1] / "support" / "polling.py"


def started(*arguments: str | Path | int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(POLLING), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="no process can be killed with SIGKILL here")
def test_four_readers_see_each_row_once_and_no_error(tmp_path: Path) -> None:
    run, stop = tmp_path / "run", tmp_path / "stop"
    polls = [started("read", run, stop) for _ in range(4)]
    end, seed, died = time.monotonic() + SECONDS, 0, 0
    while time.monotonic() < end or not died:
        seed += 1
        writer = started("write", run, seed)
        _, errors = writer.communicate()
        died += writer.returncode == -9
        assert writer.returncode in (0, -9), errors
        if seed % 3 == 0:
            repair(run)
    stop.touch()
    for poll in polls:
        output, errors = poll.communicate()
        assert (poll.returncode, errors) == (0, "")
        reads, rows = map(int, output.split())
        assert reads > SECONDS / 2
        assert rows > 50


def listing(directory: Path) -> dict[str, tuple[int, int, int]]:
    found = [directory, *directory.rglob("*")]
    status = {str(path): path.lstat() for path in found}
    return {name: (s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in status.items()}


def test_reading_changes_nothing(tmp_path: Path, synthetic_run: Callable[..., Path]) -> None:
    make_interrupted_run(tmp_path / "left")
    for path in (tmp_path / "left", synthetic_run("closed"), synthetic_run("open", close=False)):
        before = listing(path)
        run = trustlens.open_run(path)
        layer = run.layer_names[0]
        for read in readers(run):
            if path.name == "left" or "histograms" not in repr(read):
                read() if layer == "a.weight" else None
        run.layers(), run.downsample("grad_norm"), run.diagnose(), run.missing()
        assert listing(path) == before
