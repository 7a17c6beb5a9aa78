"""kill -9 at any moment: flushed rows can be read, and the run can be resumed."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections import Counter, deque
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import trustlens
from tests.support.interrupted import OPTIMIZERS, Job, assert_same, contents
from tests.support.processes import LONG, Child, needs_forks
from tests.support.recoverable_training import OPTIONS, STEPS, Point, Torn, train
from trustlens.cli import main

KILLS = int(os.environ.get("TRUSTLENS_EXAMPLES", "10"))

SEALED = r"^(layers|steps|metrics|histograms)/\d+\.parquet$"
POINTS = {
    "before a segment is on the disk": Point("open", r"^layers/\..*\.tmp$"),
    "before a segment is renamed": Point("os.rename", SEALED),
    "between renaming a segment and removing its journal": Point("os.remove", "^journal/"),
    "before run.json is on the disk": Point("open", r"^\.run\.json\.tmp$"),
    "before run.json is replaced": Point("os.rename", r"^run\.json$"),
    "as a rollback begins": Point("os.mkdir", r"^\.replaced"),
    "as a rollback copies a segment": Point("os.link", r"^\.replaced/"),
    "as a rollback replaces a segment": Point("os.rename", SEALED, after="os.link"),
    "as a rollback ends": Point("os.rename", SEALED, after="os.link", times=8),
    "as the overview is written": Point("os.rename", "^overview/"),
    "as the overview is removed": Point("os.remove", "^overview/"),
    "as the lock is released": Point("os.remove", r"^\.lock$"),
    "as the journal folder is removed": Point("os.rmdir", "^journal$"),
}

pytestmark = needs_forks


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By optimizer, the run of a process that is never killed."""
    runs: dict[str, Path] = {}
    for name in ("AdamW", "SGD, momentum"):
        runs[name] = tmp_path_factory.mktemp("straight") / "run"
        job = Job(OPTIMIZERS[name])
        with job.record(runs[name], **OPTIONS) as recorder:
            job.train(STEPS, recorder)
    return runs


class Training:
    """A training that is killed and started again until it is finished."""

    def __init__(self, folder: Path, optimizer: str, uninterrupted: Path) -> None:
        folder.mkdir()
        self.run, self.checkpoint = folder / "run", folder / "checkpoint.pt"
        self.errors = folder / "errors"
        self._optimizer, self._uninterrupted = optimizer, uninterrupted
        self._expected = contents(uninterrupted)
        self._safe = 0  # steps up to this one were flushed

    def start(self, stop: Point | Torn | None, seed: int) -> Child:
        return Child(
            self.errors, train, self.run, self._optimizer, self.checkpoint, stop, seed
        )  # fmt: skip

    def kill(self, stop: Point | Torn | None, rng: random.Random) -> str | None:
        """Resume it and kill it; return where it was, or None if it finished before."""
        child = self.start(stop, rng.randrange(1 << 30))
        end = time.monotonic() + (LONG if stop else rng.expovariate(8))
        where: str | None = None if stop else "at some moment"
        while (message := child.receive(end - time.monotonic())) is not None:
            if message[0] == "stopped":
                where = message[1]
                break
            self._note_flushed(*message)
        rest = child.kill()
        for said in rest:
            self._note_flushed(*said)
        if message == ("closed", STEPS) or ("closed", STEPS) in rest or child.status == 0:
            return None
        assert child.status == -signal.SIGKILL, self.errors.read_text()
        assert where is not None, f"it reached neither {stop} nor its end"
        return where

    def _note_flushed(self, what: str, step: int) -> None:
        if what != "stopped":
            self._safe = step

    def check(self) -> None:
        """Check that all flushed rows are there, once, and no other rows."""
        if not (self.run / "run.json").exists():
            assert self._safe == 0
            return
        opened = trustlens.open_run(self.run)
        assert opened.status in ("interrupted", "closed")
        assert bool(opened.missing()) == (opened.status == "interrupted")
        assert len(opened.layers()) == len(opened.layers(["trust_ratio"]))
        for table, rows in contents(self.run).items():
            expected = self._expected[table]
            last = max([self._safe, *rows["step"]])
            # Up to the last step: no row twice, none missing.
            pd.testing.assert_frame_equal(
                rows, expected[expected["step"] <= last].reset_index(drop=True), obj=table
            )

    def repair(self) -> None:
        assert main(["repair", str(self.run)]) in (0, 1)
        self.check()
        assert not (self.run / "journal").exists()
        assert main(["repair", str(self.run)]) == 0

    def finish(self) -> None:
        assert self.start(None, 0).result() == ("closed", STEPS)
        self.check_end()

    def check_end(self) -> None:
        assert_same(self.run, self._uninterrupted)
        opened = trustlens.open_run(self.run)
        assert (opened.status, opened.missing()) == ("closed", [])
        said = self.errors.read_text()
        assert "Traceback" not in said
        assert "stopped recording" not in said


def test_a_recording_that_is_killed_at_random_moments(
    uninterrupted: dict[str, Path], tmp_path: Path
) -> None:
    rng = random.Random(1)  # noqa: S311
    points = deque(POINTS.items())
    where: Counter[str] = Counter()
    finished = 0
    trainings = (
        Training(tmp_path / str(n), *rng.choice([*uninterrupted.items()]))
        for n in itertools.count()
    )
    training = next(trainings)
    while where.total() < KILLS:
        name, stop = _choose_stop(points, rng)
        found = training.kill(stop, rng)
        if found is None:
            training.check_end()
            finished, training = finished + 1, next(trainings)
            continue
        where[name] += 1
        if name == points[0][0]:
            points.rotate(-1)
        training.check()
        if (training.run / "run.json").exists() and rng.random() < 0.4:
            training.repair()
        if rng.random() < 0.2:
            training.finish()
            finished, training = finished + 1, next(trainings)
    training.finish()
    assert finished > KILLS // 20
    assert 2 * len(POINTS) > KILLS or where.keys() >= POINTS.keys()


def _choose_stop(
    points: deque[tuple[str, Point]], rng: random.Random
) -> tuple[str, Point | Torn | None]:
    kind = rng.random()
    if kind < 0.5:
        name, point = points[0]
        return name, replace(point, times=point.times * rng.choice([1, 1, 2, 3]))
    if kind < 0.6:
        return "in the middle of a seal", Torn(rng.randrange(1, 30), rng.random())
    return "at some moment", None
