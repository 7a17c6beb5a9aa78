"""Measure the cost of writing a run's files: time per step, and memory."""

from __future__ import annotations

import contextlib
import gc
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from benchmarks.files.formats import FLUSH, batches, on_one_core, size, slice_of
from benchmarks.files.queries import memory
from trustlens.store.run_info import read_info
from trustlens.store.writer import RunWriter

EARLY, LATE = 1_000, 100_000
"""Steps after which the memory of the process is read."""


def steps(run: str, count: int) -> dict[str, Any]:
    """Write steps in batches of 64; return the seconds of each append and flush.

    Times during which a segment was sealed (there are more files afterwards) are listed separately.
    """
    on_one_core()
    source = Path(run)
    info = read_info(source)
    each = list(batches(slice_of(source, 1, count)))
    plain: list[float] = []
    sealing: list[float] = []
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        writer, files = RunWriter(Path(folder) / "run", info), 0
        for batch in tqdm(each, desc="steps", unit="batch", leave=False, delay=2):
            began = time.perf_counter()
            writer.append("layers", batch)
            writer.flush()
            ended = time.perf_counter()
            now = len(list(Path(folder, "run", "layers").glob("*.parquet")))
            (sealing if now > files else plain).append(ended - began)
            files = now
        began = time.perf_counter()
        writer.close(info)
        sealing.append(time.perf_counter() - began)
    return {"steps": count, "plain": plain, "sealing": sealing, "of_a_batch": FLUSH}


def endless(known: Sequence[pa.Table], count: int) -> Iterator[pa.Table]:
    """Yield the batches repeatedly, renumbered, until there are ``count`` steps."""
    layers = known[0].num_rows // FLUSH
    done = 0
    while done < count:
        for batch in known:
            taken = batch.slice(0, min(FLUSH, count - done) * layers)
            yield numbered(taken, done + 1)
            done += taken.num_rows // layers
            if done >= count:
                return


def numbered(rows: pa.Table, first: int) -> pa.Table:
    """Return the rows with steps renumbered from ``first``."""
    steps = rows["step"].to_numpy()
    return rows.set_column(0, rows.schema.field("step"), pa.array(steps - steps[0] + first))


def settled() -> int:
    """Free unused memory and reset its peak; return the memory in use, in bytes."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(OSError):  # not Linux: the peak cannot be read there either
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return memory("VmRSS")


def held(run: str, early: int = EARLY, late: int = LATE) -> dict[str, Any]:
    """Write ``late`` steps; return the memory after ``early`` and after ``late`` steps.

    Also the seconds of the longest append, during which the writer thread takes no other rows.
    """
    source = Path(run)
    info = read_info(source)
    known, found = list(batches(slice_of(source, 1, 16 * FLUSH))), dict[str, int]()
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        writer = RunWriter(Path(folder) / "run", info)
        bar = tqdm(total=late, desc="memory", unit="step", leave=False, delay=2)
        done, longest, before = 0, 0.0, settled()
        for batch in endless(known, late):
            began = time.perf_counter()
            writer.append("layers", batch)
            writer.flush()
            longest = max(longest, time.perf_counter() - began)
            done += batch.num_rows // len(info.layers)
            bar.update(batch.num_rows // len(info.layers))
            if done >= early and "early" not in found:
                found |= {"early": memory("VmRSS"), "early_peak": memory("VmHWM")}
        bar.close()
        found |= {"late": memory("VmRSS"), "late_peak": memory("VmHWM")}
        writer.close(info)
        written = size(Path(folder))
    return {
        "before": before,
        **found,
        "steps": [early, late],
        "longest": longest,
        "bytes": written,
    }
