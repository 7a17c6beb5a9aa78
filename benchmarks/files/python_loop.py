"""Measure how much the writer thread slows down a pure-Python loop, through the interpreter lock.

The loop stands for a training that is limited by its own Python code. In each iteration it hands
over the sums of one step, as the recorder does; the writer thread turns them into rows and writes
them.
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
"""Steps per second of the loop alone."""

PAUSE = 0.3
"""Seconds between two turns, in which the writer thread finishes the rows of the first one."""

_NOT_KNOWN = ("applied", "undone")  # AdamW applies no trust ratio; small weights are copied


def measure(run: str, rounds: int, turn: int | None = None) -> dict[str, Any]:
    """Time the loop alone, with the whole writer, and with a writer whose rows are ready-made.

    A turn has as many steps as a segment, so that one segment is sealed in each turn.
    """
    info = read_info(Path(run))
    turn = turn or -(-SEGMENT_ROWS // len(info.layers))
    rows = slice_of(Path(run), 1, min(turn, info.config["steps"]))
    records = records_of(rows, info)
    begin = partial(Loop, calibrated(1 / RATE), records, turn)

    def alone(_: Path) -> Running:
        loop = begin(_ignore)
        return Running(loop.step, loop.waiting)

    contenders = [
        Contender("alone", "a loop in Python", alone),
        Contender(
            "writer",
            f"{RATE} steps/s of {len(info.layers)} layers: rows made and written",
            lambda folder: with_writer(folder, info, begin),
        ),
        Contender(
            "files",
            "the same, rows made beforehand",
            lambda folder: with_writer(folder, info, begin, rows),
        ),
    ]
    entries = compare(contenders, rounds=rounds, turn=turn, clock=with_pause, warm_up=1)
    return {"turn": turn, "contenders": entries}


def with_pause(step: Step, turn: int) -> float:
    """Time steps, then let the writer thread finish."""
    seconds = wall(step, turn)
    time.sleep(PAUSE)
    return seconds


def calibrated(seconds: float) -> Step:
    """Return a function of pure Python that takes about ``seconds``."""

    def work(times: int) -> None:
        total = 0
        for each in range(times):
            total += each & 3

    few = 100_000
    fastest = min(wall(lambda: work(few), 1) for _ in range(20))
    return lambda times=int(seconds / fastest * few): work(times)


class Loop:
    """The loop. Each iteration does some work, then hands over a record with the next step number.

    Its waiting time is its wall time minus its CPU time: it waits only for the interpreter lock or
    a core.
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
        """Do one iteration."""
        began, computed = time.perf_counter(), time.thread_time()
        self.work()
        number = len(self.times) + 1
        self.put(replace(self.records[number % len(self.records)], step=number))
        computed = (
            time.thread_time() - computed
        )  # read first, so that it is never above the wall time
        took = time.perf_counter() - began
        self.times.append((took, took - computed))

    def waiting(self) -> dict[str, Any]:
        """Return the share of its time that it waits, as the median over the turns."""
        turns = [self.times[at : at + self.turn] for at in range(0, len(self.times), self.turn)]
        shares = [sum(w for _, w in each) / sum(t for t, _ in each) * 100 for each in turns]
        return {
            "waits_percent": round(statistics.median(shares), 3),
            "waits_percent_quartiles": [round(share, 3) for share in quartiles(shares)],
        }


def with_writer(
    folder: Path,
    info: RunInfo,
    begin: Callable[[Callable[[StepRecord], object]], Loop],
    rows: pa.Table | None = None,
) -> Running:
    """Return the loop with a writer thread, which builds the rows unless they are given."""
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
        return {"dropped": thread.dropped, **loop.waiting()}

    loop = begin(thread.put)
    return Running(loop.step, close)


def records_of(rows: pa.Table, info: RunInfo) -> list[StepRecord]:
    """Return the records that the recorder's hooks would have handed over for these rows."""
    sizes = np.array([layer.size for layer in info.layers], np.float64)
    count = len(sizes)
    known = np.tile([name not in _NOT_KNOWN for name in KNOWN], (count, 1))
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


def _ignore(record: StepRecord) -> None:
    """Ignore a record."""
