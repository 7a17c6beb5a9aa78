"""A training that records itself, goes on from its checkpoint, and may stand still anywhere."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

import trustlens.store.writer
from support.interrupted import OPTIMIZERS, Job
from support.processes import stand_still

STEPS = 32
SEGMENT = 10  # rows: some tables are sealed every three steps
OPTIONS = {"histograms_every": 4}

Tell = Callable[..., None]


@dataclass(frozen=True)
class Point:
    """A place in the code at which the process stands still: before it does this to a file.

    ``event`` is Python's name of it (``os.rename``), ``path`` a pattern of what it is done to
    within the run, ``after`` another event without which it does not count.
    """

    event: str
    path: str
    after: str = ""
    times: int = 1


@dataclass(frozen=True)
class Torn:
    """Stands still as that many files are sealed, with a part only of the last on the disk."""

    times: int
    share: float


def train(  # noqa: PLR0917
    tell: Tell,
    directory: Path,
    optimizer: str,
    checkpoint: Path,
    stop: Point | Torn | None,
    seed: int,
) -> None:
    """Train as a job does that may be stopped at any moment; tell which step is safe by now."""
    trustlens.store.writer.SEGMENT_ROWS = SEGMENT
    if isinstance(stop, Point):
        _stand_still_at(tell, directory, stop)
    elif stop is not None:
        _stand_still_torn(tell, stop)
    choices = torch.Generator().manual_seed(seed)
    job = Job(OPTIMIZERS[optimizer])
    recorder = job.record(directory, resume=True, **OPTIONS)
    told = "momentum" in optimizer or int(torch.randint(2, (1,), generator=choices)) > 0
    saved = torch.load(checkpoint, weights_only=False) if checkpoint.exists() else None
    tell("at", saved["job"]["done"] if saved else 0)  # what is behind it will come again
    if saved:
        job.load(saved["job"])
        if told:
            recorder.load_state_dict(saved["recorder"])
    while job.done < STEPS:
        job.train(
            min(STEPS, job.done + 1 + int(torch.randint(4, (1,), generator=choices))), recorder
        )
        recorder.flush()
        tell("flushed", job.done)
        if int(torch.randint(4, (1,), generator=choices)) == 0:
            _save({"job": job.checkpoint(), "recorder": recorder.state_dict()}, checkpoint)
    recorder.close()
    tell("closed", STEPS)


def _save(state: dict[str, Any], path: Path) -> None:
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def _stand_still_at(tell: Tell, directory: Path, point: Point) -> None:
    root, pattern, mine = f"{directory}{os.sep}", re.compile(point.path), os.getpid()
    armed, left = not point.after, point.times

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal armed, left
        if event not in (point.event, point.after) or os.getpid() != mine:
            return
        paths = [str(path) for path in arguments[:2] if isinstance(path, (str, Path))]
        inside = [path.removeprefix(root) for path in paths if path.startswith(root)]
        armed = armed or (event == point.after and bool(inside))
        if event == point.event and armed and inside and pattern.search(inside[-1]):
            left -= 1
            if left == 0:
                tell("stands", f"{event} {inside[-1]}")
                stand_still()

    sys.addaudithook(hook)


def _stand_still_torn(tell: Tell, torn: Torn) -> None:
    write, left = pq.write_table, torn.times

    def half(table: Any, path: Path, **options: Any) -> None:
        nonlocal left
        write(table, path, **options)
        left -= 1
        if left == 0:
            os.truncate(path, int(path.stat().st_size * torn.share))
            tell("stands", f"torn {path.name}")
            stand_still()

    pq.write_table = half
