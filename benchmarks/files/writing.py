"""What writing a run's files costs: a step, the interpreter's lock, and memory."""

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
"""Steps after which the writer's memory is read."""


def steps(run: str, count: int) -> dict[str, Any]:
    """Write so many steps by 64; return the seconds of each append and flush, and of all.

    Those in which rows were sealed stand apart: they are told by the files.
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
    """Yield batches over and over, numbered on, until there are so many steps."""
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
    """Return rows whose steps begin at another number."""
    steps = rows["step"].to_numpy()
    return rows.set_column(0, rows.schema.field("step"), pa.array(steps - steps[0] + first))


def settled() -> int:
    """Give back what is not in use, and forget the peak so far; return the memory in use."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(OSError):  # not on Linux, where there is no peak to be read either
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return memory("VmRSS")


def held(run: str, early: int = EARLY, late: int = LATE) -> dict[str, Any]:
    """Write so many steps; return the process's memory after the early ones and after the last.

    And the seconds that the longest append took, in which the writer's thread takes nothing else.
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
