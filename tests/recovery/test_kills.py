"""kill -9 at any moment: what was flushed can be read, and the run can be gone on with."""

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
from support.interrupted import OPTIMIZERS, Job, assert_same, contents
from support.processes import LONG, Child, needs_forks
from support.recoverable_training import OPTIONS, STEPS, Point, Torn, train
from trustlens.cli import main

KILLS = int(os.environ.get("TRUSTLENS_EXAMPLES", "10"))

SEALED = r"^(layers|steps|metrics|histograms)/\d+\.parquet$"
POINTS = {
    "before a sealed file is on the disk": Point("open", r"^layers/\..*\.tmp$"),
    "before a sealed file gets its name": Point("os.rename", SEALED),
    "between the sealed file's name and the journal's end": Point("os.remove", "^journal/"),
    "before run.json is on the disk": Point("open", r"^\.run\.json\.tmp$"),
    "before run.json is replaced": Point("os.rename", r"^run\.json$"),
    "as a rewind begins": Point("os.mkdir", r"^\.replaced"),
    "as a rewind keeps a file": Point("os.link", r"^\.replaced/"),
    "as a rewind replaces a file": Point("os.rename", SEALED, after="os.link"),
    "as a rewind is over": Point("os.rename", SEALED, after="os.link", times=8),
    "as the overview is written": Point("os.rename", "^overview/"),
    "as the overview is taken away": Point("os.remove", "^overview/"),
    "as the lock is given back": Point("os.remove", r"^\.lock$"),
    "as the journal's folder goes": Point("os.rmdir", "^journal$"),
}

pytestmark = needs_forks


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By optimizer, what a process records that is never killed."""
    made: dict[str, Path] = {}
    for name in ("AdamW", "SGD, momentum"):
        made[name] = tmp_path_factory.mktemp("straight") / "run"
        job = Job(OPTIMIZERS[name])
        with job.record(made[name], **OPTIONS) as recorder:
            job.train(STEPS, recorder)
    return made


class Training:
    """A training that is killed and started again until it is over."""

    def __init__(self, folder: Path, optimizer: str, straight: Path) -> None:
        folder.mkdir()
        self.run, self.checkpoint = folder / "run", folder / "checkpoint.pt"
        self.errors = folder / "errors"
        self._optimizer, self._straight = optimizer, straight
        self._expected = contents(straight)
        self._safe = 0  # steps up to this one were flushed

    def start(self, stop: Point | Torn | None, seed: int) -> Child:
        return Child(
            self.errors, train, self.run, self._optimizer, self.checkpoint, stop, seed
        )  # fmt: skip

    def kill(self, stop: Point | Torn | None, chance: random.Random) -> str | None:
        """Have it go on and kill it; return where it was, or None if it was over before."""
        child = self.start(stop, chance.randrange(1 << 30))
        end = time.monotonic() + (LONG if stop else chance.expovariate(8))
        where: str | None = None if stop else "at some moment"
        while (told := child.told(end - time.monotonic())) is not None:
            if told[0] == "stands":
                where = told[1]
                break
            self._hear(*told)
        rest = child.kill()
        for said in rest:
            self._hear(*said)
        if told == ("closed", STEPS) or ("closed", STEPS) in rest or child.status == 0:
            return None
        assert child.status == -signal.SIGKILL, self.errors.read_text()
        assert where is not None, f"it neither came to {stop} nor to its end"
        return where

    def _hear(self, what: str, step: int) -> None:
        if what != "stands":
            self._safe = step

    def check(self) -> None:
        """All that was flushed is there, once; nothing is torn, and nothing is made up."""
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
            # Up to the last step that there is: no row twice, none lost, none between two missing.
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
        assert_same(self.run, self._straight)
        opened = trustlens.open_run(self.run)
        assert (opened.status, opened.missing()) == ("closed", [])
        said = self.errors.read_text()
        assert "Traceback" not in said
        assert "stopped recording" not in said


def test_a_recording_that_is_killed_at_random_moments(
    straight: dict[str, Path], tmp_path: Path
) -> None:
    chance = random.Random(1)  # noqa: S311
    points = deque(POINTS.items())
    where: Counter[str] = Counter()
    over = 0
    trainings = (
        Training(tmp_path / str(n), *chance.choice([*straight.items()])) for n in itertools.count()
    )
    training = next(trainings)
    while where.total() < KILLS:
        name, stop = _next(points, chance)
        found = training.kill(stop, chance)
        if found is None:
            training.check_end()
            over, training = over + 1, next(trainings)
            continue
        where[name] += 1
        if name == points[0][0]:
            points.rotate(-1)
        training.check()
        if (training.run / "run.json").exists() and chance.random() < 0.4:
            training.repair()
        if chance.random() < 0.2:
            training.finish()
            over, training = over + 1, next(trainings)
    training.finish()
    assert over > KILLS // 20
    assert 2 * len(POINTS) > KILLS or where.keys() >= POINTS.keys()


def _next(
    points: deque[tuple[str, Point]], chance: random.Random
) -> tuple[str, Point | Torn | None]:
    kind = chance.random()
    if kind < 0.5:
        name, point = points[0]
        return name, replace(point, times=point.times * chance.choice([1, 1, 2, 3]))
    if kind < 0.6:
        return "in the middle of a seal", Torn(chance.randrange(1, 30), chance.random())
    return "at some moment", None
