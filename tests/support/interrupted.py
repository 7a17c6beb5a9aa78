"""A training that can be interrupted, and checks that its run does not show the interruption."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import torch
from torch import nn

import trustlens
from trustlens.schema import TABLES
from trustlens.store.reader import read_table

Make = Callable[..., torch.optim.Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01),
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "Lamb": lambda p: trustlens.optim.Lamb(p, lr=0.01),
}


class Job:
    """A training whose data depend only on the step, so that a new process can continue it."""

    def __init__(self, make: Make = OPTIMIZERS["AdamW"], *, scaled: bool = False) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
        self.optimizer = make(self.model.parameters())
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        self.overflows: tuple[int, ...] = (1, 2, 6, 11) if scaled else ()
        self.done = 0

    def record(self, directory: Path, **options: Any) -> trustlens.Recorder:
        return trustlens.record(self.optimizer, directory, model=self.model, **options)

    def train(self, until: int, recorder: trustlens.Recorder | None = None) -> None:
        while self.done < until:
            self.done += 1
            data = torch.randn(4, 6, generator=torch.Generator().manual_seed(self.done))
            self.optimizer.zero_grad()
            loss = self.model(data).square().mean()
            factor = float("inf") if self.done in self.overflows else 1.0
            self.scaler.scale(loss * factor).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if recorder is not None:
                recorder.log(loss=loss)

    def checkpoint(self) -> dict[str, Any]:
        parts = (self.model, self.optimizer, self.scaler)
        return copy.deepcopy({"job": [p.state_dict() for p in parts], "done": self.done})

    def load(self, checkpoint: dict[str, Any]) -> None:
        for part, state in zip(
            (self.model, self.optimizer, self.scaler), checkpoint["job"], strict=True
        ):
            part.load_state_dict(copy.deepcopy(state))
        self.done = checkpoint["done"]


def contents(directory: Path) -> dict[str, pd.DataFrame]:
    """Return the rows of each table in a fixed order, without their times."""
    frames: dict[str, pd.DataFrame] = {}
    for table in TABLES:
        frame = read_table(directory, table).to_pandas().drop(columns="time", errors="ignore")
        keys = [c for c in ("step", "layer", "quantity", "name") if c in frame]
        for key in keys[1:]:
            frame[key] = frame[key].astype(str)
        frames[table] = frame.sort_values(keys, ignore_index=True)
    return frames


def assert_same(one: Path, other: Path) -> None:
    """Check that two runs have the same rows, and that each row of the first exists once."""
    expected = contents(other)
    for table, frame in contents(one).items():
        pd.testing.assert_frame_equal(frame, expected[table], obj=table)
    for table in ("layers", "histograms"):
        twice = duckdb.sql(
            f"select step, layer, count(*) n from '{one}/{table}/*.parquet' "
            f"group by all having n > {1 if table == 'layers' else 3}"
        )
        assert twice.fetchall() == []


OPTIONS = {"every": 3, "histograms_every": 4}


def uninterrupted(directory: Path, make: Make, until: int = 20, *, scaled: bool = False) -> Path:
    """Record a training that is not interrupted, and return its directory."""
    job = Job(make, scaled=scaled)
    with job.record(directory, **OPTIONS) as recorder:
        job.train(until, recorder)
    return directory
