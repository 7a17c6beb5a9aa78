"""What the writer's thread takes from a loop in Python that runs beside it: the interpreter's lock.

The loop stands for a training that is held up by its own Python. It hands a step's sums over in
each of its turns, as the recorder does; the writer's thread makes rows of them and writes them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.common.measure import Contender, Running, Step, compare, quartiles, wall
from benchmarks.files.formats import slice_of
from benchmarks.files.writing import numbered
from trustlens.recording.measuring.measurement import HOST_COLUMNS, KNOWN, Measurement
from trustlens.recording.statistics import SUMS
from trustlens.recording.transfer import Parcel
from trustlens.recording.writing.records import StepRecord
from trustlens.recording.writing.sink import RowSink
from trustlens.recording.writing.writer_thread import WriterThread
from trustlens.store.run_info import RunInfo, read_info
from trustlens.store.writer import SEGMENT_ROWS, RunWriter

RATE = 200
"""Steps a second of the loop alone."""

QUIET = 0.3
"""Seconds between two turns, so that what one leaves to the writer is not in the other's time."""

_LACKS = ("applied", "undone")  # AdamW applies no trust ratio; small weights are copied


def measure(run: str, rounds: int, turn: int | None = None) -> dict[str, Any]:
    """Have the loop run alone, beside the whole writer, and beside one whose rows are made.

    A turn has as many steps as a sealed file, so that there is one sealing in each.
    """
    info = read_info(Path(run))
    turn = turn or -(-SEGMENT_ROWS // len(info.layers))
    rows = slice_of(Path(run), 1, min(turn, info.config["steps"]))
    records = records_of(rows, info)
    begin = partial(Loop, calibrated(1 / RATE), records, turn)

    def alone(_: Path) -> Running:
        loop = begin(_nobody)
        return Running(loop.step, loop.noted)

    contenders = [
        Contender("alone", "a loop in Python", alone),
        Contender(
            "writer",
            f"{RATE} steps/s of {len(info.layers)} layers: rows made and written",
            lambda folder: beside(folder, info, begin),
        ),
        Contender(
            "files",
            "the same, rows made beforehand",
            lambda folder: beside(folder, info, begin, rows),
        ),
    ]
    entries = compare(contenders, rounds=rounds, turn=turn, clock=quiet, warm_up=1)
    return {"turn": turn, "contenders": entries}


def quiet(step: Step, turn: int) -> float:
    """Time steps, then let the others come to rest."""
    seconds = wall(step, turn)
    time.sleep(QUIET)
    return seconds


def calibrated(seconds: float) -> Step:
    """Return some plain Python that takes about so long."""

    def work(times: int) -> None:
        total = 0
        for each in range(times):
            total += each & 3

    few = 100_000
    fastest = min(wall(lambda: work(few), 1) for _ in range(20))
    return lambda times=int(seconds / fastest * few): work(times)


class Loop:
    """The loop: some work, then one of the records, numbered on.

    What it waits is its time less that in which it computes: it has nothing else to wait for than
    the interpreter's lock, and a core.
    """

    def __init__(
        self,
        work: Step,
        records: Sequence[StepRecord],
        turn: int,
        put: Callable[[StepRecord], object],
    ) -> None:
        self.work, self.records, self.turn, self.put = work, records, turn, put
        self.times: list[tuple[float, float]] = []

    def step(self) -> None:
        """Do a turn of it."""
        began, computed = time.perf_counter(), time.thread_time()
        self.work()
        number = len(self.times) + 1
        self.put(replace(self.records[number % len(self.records)], step=number))
        computed = time.thread_time() - computed  # within the other clock's time: never more
        took = time.perf_counter() - began
        self.times.append((took, took - computed))

    def noted(self) -> dict[str, Any]:
        """Return the share of its time that it waits, by the median of the turns."""
        turns = [self.times[at : at + self.turn] for at in range(0, len(self.times), self.turn)]
        shares = [sum(w for _, w in each) / sum(t for t, _ in each) * 100 for each in turns]
        return {
            "waits_percent": round(statistics.median(shares), 3),
            "waits_percent_quartiles": [round(share, 3) for share in quartiles(shares)],
        }


def beside(
    folder: Path,
    info: RunInfo,
    begin: Callable[[Callable[[StepRecord], object]], Loop],
    rows: pa.Table | None = None,
) -> Running:
    """Return the loop with a writer's thread beside it, which makes the rows unless given."""
    store = RunWriter(folder / "run", info)
    names = [layer.name for layer in info.layers]
    output = RowSink(store, names, (), print, several=False)

    def write(items: list[StepRecord]) -> None:
        assert rows is not None
        store.append("layers", numbered(rows.slice(0, len(items) * len(names)), items[0].step))
        store.flush()

    thread = WriterThread(output.write if rows is None else write)

    def close() -> dict[str, Any]:
        thread.close()
        store.close(info)
        if thread.failure is not None:
            raise thread.failure
        return {"dropped": thread.dropped, **loop.noted()}

    loop = begin(thread.put)
    return Running(loop.step, close)


def records_of(rows: pa.Table, info: RunInfo) -> list[StepRecord]:
    """Return what the recorder's hooks would have handed over for these rows."""
    sizes = np.array([layer.size for layer in info.layers], np.float64)
    count = len(sizes)
    known = np.tile([name not in _LACKS for name in KNOWN], (count, 1))
    places = np.arange(count, dtype=np.int32)
    columns = {name: rows[name].to_numpy().astype(np.float64) for name in rows.column_names[2:]}
    columns |= {
        name: columns[name.replace("_squares", "_norm")] ** 2
        for name in SUMS
        if name.endswith("_squares")
    }
    columns["surprise_sum"] = columns["surprise"] * np.tile(sizes, rows.num_rows // count)
    sums = np.stack([columns[name] for name in SUMS], 1).reshape(-1, count, len(SUMS))
    host = np.stack([columns[name] for name in HOST_COLUMNS], 1).reshape(-1, count, 4)
    now = time.time_ns() // 1000
    return [
        StepRecord(
            step,
            now + step,
            first=True,
            measured=[Measurement(places, sizes, known, own, Parcel(torch.from_numpy(of_step)))],
        )
        for step, (own, of_step) in enumerate(zip(host, sums, strict=True), 1)
    ]


def _nobody(record: StepRecord) -> None:
    """Take it, as nobody does."""
