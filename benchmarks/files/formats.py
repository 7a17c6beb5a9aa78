"""Write the same values in several file formats, each on one core.

Each package is imported where it is used, so that a missing one becomes an entry that says why.
"""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from tqdm import tqdm

from trustlens.schema import RECORDED
from trustlens.store.layout import SCHEMAS
from trustlens.store.run_info import LayerInfo, RunInfo, read_info
from trustlens.store.writer import RunWriter

FLUSH = 64
"""Steps that are written together; the recorder's batches have as many."""

ROW_BYTES = 8 + 4 + 4 * len(RECORDED)
"""Bytes of an uncompressed row: step (8), index of the layer (4), and its quantities (4 each)."""


@dataclass(frozen=True)
class Format:
    """How rows become files; ``prepare`` converts them to what ``write`` takes, untimed."""

    what: str
    steps: int  # steps of the slice that is written
    write: Callable[[Any, Path], None]  # writes what `prepare` returned to a folder
    prepare: Callable[[pa.Table], Any] = lambda rows: rows


def slice_of(run: Path, first: int, steps: int) -> pa.Table:
    """Return the rows of some steps of a closed run, in the order in which they were recorded."""
    step = pc.field("step")
    rows = ds.dataset(run / "layers", format="parquet").to_table(
        filter=(step >= first) & (step < first + steps)
    )
    names = [layer.name for layer in read_info(run).layers]
    rows = rows.cast(SCHEMAS["layers"]).unify_dictionaries()
    place = pc.index_in(rows["layer"].cast(pa.string()), pa.array(names))
    order = pc.sort_indices(
        pa.table({"step": rows["step"], "place": place}),
        [("step", "ascending"), ("place", "ascending")],
    )
    return rows.take(order).combine_chunks()


def batches(rows: pa.Table) -> Iterator[pa.Table]:
    """Return the rows in batches of ``FLUSH`` steps; each step has the same number of rows."""
    layers = pc.sum(pc.equal(rows["step"], rows["step"][0])).as_py()
    for first in range(0, rows.num_rows, layers * FLUSH):
        yield rows.slice(first, layers * FLUSH)


def size(folder: Path) -> int:
    """Return the total size in bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def on_one_core() -> None:
    """Restrict this process to one core, and with it packages that count the cores from now on."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    pa.set_cpu_count(1)


def measure(name: str, run: str, rounds: int) -> dict[str, Any]:
    """Write a slice of a run in a format repeatedly; return the times in seconds and the size."""
    on_one_core()
    form, source = FORMATS[name], Path(run)
    last = read_info(source).config["steps"]
    steps = min(form.steps, last)
    rows = slice_of(source, (last - steps) // 2 + 1, steps)
    prepared, seconds, written = form.prepare(rows), [], 0
    for _ in tqdm(range(rounds), desc=name, unit="round", leave=False):
        with tempfile.TemporaryDirectory(dir=source.parent) as folder:
            began = time.perf_counter()
            form.write(prepared, Path(folder))
            seconds.append(time.perf_counter() - began)
            written = size(Path(folder))
    return {"steps": steps, "rows": rows.num_rows, "bytes": written, "seconds": seconds}


def read_tensorboard(run: str, steps: int, quantities: int) -> dict[str, Any]:
    """Let TensorBoard read the scalars of one layer; return their number and the seconds."""
    from tensorboard.backend.event_processing import event_accumulator  # noqa: PLC0415

    step, layer = pc.field("step"), read_info(Path(run)).layers[0].name
    rows = ds.dataset(Path(run, "layers"), format="parquet").to_table(
        filter=(step <= steps) & (pc.field("layer") == layer)
    )
    scalars = [one for one in _scalars(rows) if one[0].partition("/")[0] in RECORDED[:quantities]]
    seconds: list[float] = []
    with tempfile.TemporaryDirectory(dir=Path(run).parent) as folder:
        _tensorboard(scalars, Path(folder))
        for _ in tqdm(range(3), desc="EventAccumulator", unit="round", leave=False):
            began = time.perf_counter()
            reader = event_accumulator.EventAccumulator(folder, size_guidance={"scalars": 0})
            reader.Reload()
            read = sum(len(reader.Scalars(tag)) for tag in reader.Tags()["scalars"])
            seconds.append(time.perf_counter() - began)
    return {"scalars": read, "seconds": seconds}


def _trustlens(rows: pa.Table, folder: Path) -> None:
    names = rows["layer"].combine_chunks().dictionary.to_pylist()
    info = RunInfo("run", "", layers=tuple(LayerInfo(name, (1,), "float32") for name in names))
    writer = RunWriter(folder / "run", info)
    for batch in batches(rows):
        writer.append("layers", batch)
        writer.flush()
    writer.close(info)


def _scalars(rows: pa.Table) -> list[tuple[str, float, int]]:
    """Return tag, value and step of each value."""
    steps, layers = rows["step"].to_pylist(), rows["layer"].to_pylist()
    columns = [(name, rows[name].to_pylist()) for name in RECORDED]
    return [
        (f"{name}/{layer}", values[row], step)
        for row, (step, layer) in enumerate(zip(steps, layers, strict=True))
        for name, values in columns
    ]


def _tensorboard(scalars: list[tuple[str, float, int]], folder: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

    with SummaryWriter(str(folder)) as writer:
        for tag, value, step in scalars:
            writer.add_scalar(tag, value, step)


def _csv(rows: pa.Table, folder: Path) -> None:
    from pyarrow import csv  # noqa: PLC0415

    with csv.CSVWriter(folder / "layers.csv", rows.schema) as writer:
        for batch in batches(rows):
            writer.write(batch)


def _texts(rows: pa.Table) -> pa.Table:
    place = rows.schema.get_field_index("layer")
    return rows.set_column(place, "layer", rows["layer"].cast(pa.string()))


def _json_lines(rows: list[dict[str, Any]], folder: Path) -> None:
    with (folder / "layers.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


def _tuples(rows: pa.Table) -> list[tuple[Any, ...]]:
    return list(zip(*(column.to_pylist() for column in rows.columns), strict=True))


def _sqlite(rows: list[tuple[Any, ...]], folder: Path) -> None:
    names = SCHEMAS["layers"].names
    layers = sum(1 for row in rows if row[0] == rows[0][0])
    with sqlite3.connect(folder / "layers.db") as file:
        file.execute(f"CREATE TABLE layers ({', '.join(names)})")
        row = f"INSERT INTO layers VALUES ({', '.join('?' * len(names))})"  # noqa: S608 — our names
        for first in range(0, len(rows), layers * FLUSH):
            file.executemany(row, rows[first : first + layers * FLUSH])
            file.commit()
    file.close()


def _duckdb(rows: pa.Table, folder: Path) -> None:
    import duckdb  # noqa: PLC0415

    with duckdb.connect(str(folder / "layers.duckdb"), config={"threads": 1}) as file:
        file.register("rows", rows)
        file.execute("CREATE TABLE layers AS SELECT * FROM rows")


def _pyarrow(rows: pa.Table, folder: Path) -> None:
    import pyarrow.parquet as pq  # noqa: PLC0415

    pq.write_table(rows, folder / "layers.parquet")


def _polars_frame(rows: pa.Table) -> Any:
    import polars as pl  # noqa: PLC0415 — after on_one_core: it counts the cores when it is imported

    return pl.from_arrow(rows)


def _polars(rows: Any, folder: Path) -> None:
    rows.write_parquet(folder / "layers.parquet")


FORMATS: dict[str, Format] = {
    "trustlens": Format("RunWriter with its overview, flushed every 64 steps", 10_000, _trustlens),
    "TensorBoard": Format("SummaryWriter.add_scalar", 100, _tensorboard, _scalars),
    "CSV": Format("pyarrow's, every 64 steps", 1_000, _csv, _texts),
    "JSONL": Format("json.dumps of each row", 200, _json_lines, lambda rows: rows.to_pylist()),
    "SQLite": Format("one table, a commit every 64 steps", 200, _sqlite, _tuples),
    "DuckDB": Format("its own file, all rows at once", 10_000, _duckdb),
    "Parquet, pyarrow": Format("its defaults, all rows at once", 10_000, _pyarrow),
    "Parquet, Polars": Format("its defaults, all rows at once", 10_000, _polars, _polars_frame),
}
