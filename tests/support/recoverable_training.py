"""A training that is recorded, resumes from its checkpoint, and can be stopped at any point."""

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
from tests.support.interrupted import OPTIMIZERS, Job
from tests.support.processes import sleep_until_killed

STEPS = 32
SEGMENT = 10  # rows; some tables are sealed every three steps
OPTIONS = {"histograms_every": 4}

Send = Callable[..., None]


@dataclass(frozen=True)
class Point:
    """A point at which the process stops: just before an operation on a file of the run.

    Attributes
    ----------
    event : str
        The audit event of the operation, such as ``os.rename``.
    path : str
        A pattern of the path within the run.
    after : str
        An event that must have occurred before.
    times : int
        Stop at this occurrence.
    """

    event: str
    path: str
    after: str = ""
    times: int = 1


@dataclass(frozen=True)
class Torn:
    """Stop while writing the ``times``-th segment, when only a share of it is on the disk."""

    times: int
    share: float


def train(  # noqa: PLR0917
    send: Send,
    directory: Path,
    optimizer: str,
    checkpoint: Path,
    stop: Point | Torn | None,
    seed: int,
) -> None:
    """Train like a job that may be killed at any moment; send the steps that are flushed."""
    trustlens.store.writer.SEGMENT_ROWS = SEGMENT
    if isinstance(stop, Point):
        _stop_at(send, directory, stop)
    elif stop is not None:
        _stop_in_segment(send, stop)
    choices = torch.Generator().manual_seed(seed)
    job = Job(OPTIMIZERS[optimizer])
    recorder = job.record(directory, resume=True, **OPTIONS)
    loads_recorder = "momentum" in optimizer or int(torch.randint(2, (1,), generator=choices)) > 0
    saved = torch.load(checkpoint, weights_only=False) if checkpoint.exists() else None
    send("at", saved["job"]["done"] if saved else 0)  # later steps will be recorded again
    if saved:
        job.load(saved["job"])
        if loads_recorder:
            recorder.load_state_dict(saved["recorder"])
    while job.done < STEPS:
        job.train(
            min(STEPS, job.done + 1 + int(torch.randint(4, (1,), generator=choices))), recorder
        )
        recorder.flush()
        send("flushed", job.done)
        if int(torch.randint(4, (1,), generator=choices)) == 0:
            _save({"job": job.checkpoint(), "recorder": recorder.state_dict()}, checkpoint)
    recorder.close()
    send("closed", STEPS)


def _save(state: dict[str, Any], path: Path) -> None:
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def _stop_at(send: Send, directory: Path, point: Point) -> None:
    root, pattern, process = f"{directory}{os.sep}", re.compile(point.path), os.getpid()
    armed, left = not point.after, point.times

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal armed, left
        if event not in (point.event, point.after) or os.getpid() != process:
            return
        paths = [str(path) for path in arguments[:2] if isinstance(path, (str, Path))]
        inside = [path.removeprefix(root) for path in paths if path.startswith(root)]
        armed = armed or (event == point.after and bool(inside))
        if event == point.event and armed and inside and pattern.search(inside[-1]):
            left -= 1
            if left == 0:
                send("stopped", f"{event} {inside[-1]}")
                sleep_until_killed()

    sys.addaudithook(hook)


def _stop_in_segment(send: Send, torn: Torn) -> None:
    write, left = pq.write_table, torn.times

    def write_part(table: Any, path: Path, **options: Any) -> None:
        nonlocal left
        write(table, path, **options)
        left -= 1
        if left == 0:
            os.truncate(path, int(path.stat().st_size * torn.share))
            send("stopped", f"torn {path.name}")
            sleep_until_killed()

    pq.write_table = write_part
