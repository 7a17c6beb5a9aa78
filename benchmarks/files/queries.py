"""Query the same Parquet files with trustlens, pyarrow, DuckDB and Polars.

This module does not import torch, since the memory of the querying process is measured too. Each
package is imported by its own class, so that a process imports only the one that it measures.
"""

# `Engine` documents the methods of all engines:
# ruff: noqa: D102

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

QUANTITY = "trust_ratio"
SUMMARY = ("min", "mean", "max")
BUCKETS = {"ridges": 100, "heatmap": 400, "curve": 1000}
"""The queries that downsample, and their maximum number of buckets."""

STEPS = 100
LATEST = 256  # steps

ROUNDS = 30
PATIENCE = 8.0
"""Seconds after which a query is no longer repeated, once it was repeated three times."""


@dataclass(frozen=True)
class Parameters:
    """The parameters of the queries: the last step of the run, one layer, and bucket widths.

    ``widths`` has the number of steps of a bucket for each query of `BUCKETS`: trustlens uses those
    of the overview, and the other engines are given the same.
    """

    last: int
    layer: str
    widths: Mapping[str, int]

    @property
    def steps(self) -> list[int]:
        """Steps spread evenly over the run."""
        return np.linspace(1, self.last, min(STEPS, self.last)).astype(int).tolist()

    @property
    def latest(self) -> int:
        """The first of the latest steps."""
        return max(1, self.last - LATEST + 1)


class Engine:
    """Answers the queries, each in the way that suits the package best.

    An answer has ``layer``, ``step`` (for buckets the index of the bucket) and ``value`` or
    `SUMMARY`, in the package's own type; :meth:`normalized` converts it.
    """

    def __init__(self, run: Path) -> None:
        self.run = run

    def open(self) -> Any:
        """Open the run and read the names of its columns."""
        raise NotImplementedError

    def at_steps(self, parameters: Parameters) -> Any:
        """Return the values of all layers at some steps."""
        raise NotImplementedError

    def buckets(self, query: str, parameters: Parameters) -> Any:
        """Return the `SUMMARY` of each layer in each bucket; for "curve" of one layer only."""
        raise NotImplementedError

    def ridges(self, parameters: Parameters) -> Any:
        """Return the buckets of a ridgeline figure."""
        return self.buckets("ridges", parameters)

    def heatmap(self, parameters: Parameters) -> Any:
        """Return the buckets of a heatmap."""
        return self.buckets("heatmap", parameters)

    def curve(self, parameters: Parameters) -> Any:
        """Return the buckets of a curve of one layer."""
        return self.buckets("curve", parameters)

    def one_layer(self, parameters: Parameters) -> Any:
        """Return the values of one layer at all steps."""
        raise NotImplementedError

    def latest(self, parameters: Parameters) -> Any:
        """Return the values of all layers at the latest steps."""
        raise NotImplementedError

    def normalized(self, answer: Any) -> dict[str, Any]:
        """Return an answer's columns as arrays, sorted by layer, then step."""
        order = np.lexsort((np.asarray(answer["step"]), np.asarray(answer["layer"], str)))
        return {
            name: np.asarray(answer[name])[order]
            for name in ("layer", "step", "value", *SUMMARY)
            if name in self.columns(answer)
        }

    def columns(self, answer: Any) -> list[str]:
        """Return the names of an answer's columns."""
        return list(answer.columns)


class Trustlens(Engine):
    """trustlens' public API."""

    def __init__(self, run: Path) -> None:
        super().__init__(run)
        import trustlens  # noqa: PLC0415

        self.open_run = trustlens.open_run

    def open(self) -> Any:
        self.opened = self.open_run(self.run)

    def at_steps(self, parameters: Parameters) -> Any:
        return self.opened.matrix(QUANTITY, steps=parameters.steps)

    def width(self, query: str) -> int:
        """Return the number of steps of a bucket."""
        return self.opened.downsample(QUANTITY, BUCKETS[query]).width

    def buckets(self, query: str, parameters: Parameters) -> Any:
        layers = [parameters.layer] if query == "curve" else None
        return self.opened.downsample(QUANTITY, BUCKETS[query], layers=layers), layers

    def one_layer(self, parameters: Parameters) -> Any:
        return self.opened.layers([QUANTITY], layers=[parameters.layer])

    def latest(self, parameters: Parameters) -> Any:
        return self.opened.matrix(QUANTITY, steps=slice(parameters.latest, parameters.last + 1))

    def normalized(self, answer: Any) -> dict[str, Any]:
        """Return a matrix, buckets or rows as rows."""
        if isinstance(answer, tuple):
            read, layers = answer
            names = np.array(self.opened.layer_names if layers is None else layers)
            there = read.rows > 0
            place = ((read.steps - 1) // read.width)[:, None]
            columns = {"layer": names, "step": place, "min": read.low, "mean": read.mean,
                       "max": read.high}  # fmt: skip
            return super().normalized(
                {name: np.broadcast_to(each, there.shape)[there] for name, each in columns.items()}
            )
        if QUANTITY in answer:
            return super().normalized(answer.rename(columns={QUANTITY: "value"}))
        layers, steps = np.meshgrid(answer.columns, answer.index)
        value = answer.to_numpy().ravel()
        return super().normalized({"layer": layers.ravel(), "step": steps.ravel(), "value": value})

    def columns(self, answer: Any) -> list[str]:
        return list(answer)


class Arrow(Engine):
    """pyarrow.dataset; aggregations are streamed."""

    def __init__(self, run: Path) -> None:
        super().__init__(run)
        import pyarrow as pa  # noqa: PLC0415
        import pyarrow.compute as pc  # noqa: PLC0415
        import pyarrow.dataset as ds  # noqa: PLC0415
        from pyarrow import acero  # noqa: PLC0415

        self.pa, self.pc, self.ds, self.acero = pa, pc, ds, acero

    def open(self) -> Any:
        self.data = self.ds.dataset(self.run / "layers", format="parquet")

    def at_steps(self, parameters: Parameters) -> Any:
        return self._where(self.pc.field("step").isin(parameters.steps))

    def one_layer(self, parameters: Parameters) -> Any:
        return self._where(self.pc.field("layer") == parameters.layer)

    def latest(self, parameters: Parameters) -> Any:
        return self._where(self.pc.field("step") >= parameters.latest)

    def buckets(self, query: str, parameters: Parameters) -> Any:
        field, options = self.pc.field, self.acero
        bucket = self.pc.divide(field("step") - 1, parameters.widths[query])
        columns = [field("layer").cast(self.pa.string()), bucket, field(QUANTITY)]
        sums = [("value", f"hash_{how}", None, how) for how in SUMMARY]
        read: dict[str, Any] = {"columns": ["step", "layer", QUANTITY]}
        wanted = field("layer") == parameters.layer if query == "curve" else self.pc.scalar(True)
        nodes = (
            ("scan", options.ScanNodeOptions(self.data, **read, filter=wanted)),
            ("filter", options.FilterNodeOptions(wanted)),
            ("project", options.ProjectNodeOptions(columns, ["layer", "step", "value"])),
            ("aggregate", options.AggregateNodeOptions(sums, keys=["layer", "step"])),
        )
        plan = [options.Declaration(name, each) for name, each in nodes]
        return options.Declaration.from_sequence(plan).to_table()

    def columns(self, answer: Any) -> list[str]:
        return answer.column_names

    def _where(self, condition: Any) -> Any:
        names = {"layer": "layer", "step": "step", "value": QUANTITY}
        columns = {name: self.pc.field(column) for name, column in names.items()}
        return self.data.to_table(columns=columns, filter=condition)


class DuckDB(Engine):
    """DuckDB with a view of the files and cached footers."""

    def __init__(self, run: Path) -> None:
        super().__init__(run)
        import duckdb  # noqa: PLC0415

        self.duckdb = duckdb

    def open(self) -> Any:
        self.connection = self.duckdb.connect()
        files = f"read_parquet('{self.run / 'layers' / '*.parquet'}')"
        self.connection.execute(f"CREATE VIEW layers AS SELECT * FROM {files}")  # noqa: S608
        self.connection.execute(
            "SET parquet_metadata_cache = true"
        )  # after it has read the first file

    def at_steps(self, parameters: Parameters) -> Any:
        return self._where(f"step IN ({', '.join(map(str, parameters.steps))})")

    def one_layer(self, parameters: Parameters) -> Any:
        return self._where(f"layer = '{parameters.layer}'")

    def latest(self, parameters: Parameters) -> Any:
        return self._where(f"step >= {parameters.latest}")

    def buckets(self, query: str, parameters: Parameters) -> Any:
        sums = ", ".join(f"{how}({QUANTITY}) AS {how}" for how in SUMMARY)
        bucket = f"(step - 1) // {parameters.widths[query]} AS step"
        where = f"WHERE layer = '{parameters.layer}'" if query == "curve" else ""
        return self._answer(f"SELECT layer, {bucket}, {sums} FROM layers {where} GROUP BY ALL")  # noqa: S608

    def columns(self, answer: Any) -> list[str]:
        return answer.column_names

    def _where(self, condition: str) -> Any:
        columns = f"layer, step, {QUANTITY} AS value"
        return self._answer(f"SELECT {columns} FROM layers WHERE {condition}")  # noqa: S608

    def _answer(self, query: str) -> Any:
        return self.connection.sql(query).to_arrow_table()


class Polars(Engine):
    """Polars' lazy scan."""

    def __init__(self, run: Path) -> None:
        super().__init__(run)
        import polars as pl  # noqa: PLC0415

        self.pl = pl

    def open(self) -> Any:
        self.rows = self.pl.scan_parquet(self.run / "layers" / "*.parquet")
        self.rows.collect_schema()

    def at_steps(self, parameters: Parameters) -> Any:
        return self._where(self.pl.col("step").is_in(parameters.steps))

    def one_layer(self, parameters: Parameters) -> Any:
        return self._where(self.pl.col("layer") == parameters.layer)

    def latest(self, parameters: Parameters) -> Any:
        return self._where(self.pl.col("step") >= parameters.latest)

    def buckets(self, query: str, parameters: Parameters) -> Any:
        value = self.pl.col(QUANTITY)
        bucket = ((self.pl.col("step") - 1) // parameters.widths[query]).alias("step")
        sums = [getattr(value, how)().alias(how) for how in SUMMARY]
        rows = self.rows
        if query == "curve":
            rows = rows.filter(self.pl.col("layer") == parameters.layer)
        return rows.group_by("layer", bucket).agg(sums).collect(engine="streaming")

    def _where(self, condition: Any) -> Any:
        rows = self.rows.filter(condition)
        return rows.select("layer", "step", self.pl.col(QUANTITY).alias("value")).collect()


ENGINES: dict[str, type[Engine]] = {
    "trustlens": Trustlens,
    "pyarrow": Arrow,
    "DuckDB": DuckDB,
    "Polars": Polars,
}


QUERIES = ("open", "ridges", "heatmap", "curve", "latest", "one_layer", "at_steps")
"""The queries, by the names of the methods."""


def widths(run: str) -> dict[str, int]:
    """Return the bucket widths that trustlens uses, by query."""
    engine = Trustlens(Path(run))
    engine.open()
    return {query: engine.width(query) for query in BUCKETS}


def measure(engine: str, query: str, run: str, values: dict[str, Any]) -> dict[str, Any]:
    """Run a query repeatedly in this process; the first time is returned separately.

    Returns
    -------
    dict
        ``first`` and the other ``seconds``; the ``peak`` memory in bytes and that before
        (``idle``); and the checksums of the ``answer``.
    """
    one = ENGINES[engine](Path(run))
    parameters = Parameters(**values)
    idle, seconds = memory("VmRSS"), []
    one.open()
    ask = one.open if query == "open" else partial(getattr(one, query), parameters)
    bar = tqdm(desc=f"{engine}, {query}", unit="query", total=ROUNDS, leave=False, delay=2)
    answer = None
    while len(seconds) <= ROUNDS and (len(seconds) <= 3 or sum(seconds) < PATIENCE):
        answer = None  # frees the previous answer, so that there is one at a time
        gc.collect()
        began = time.perf_counter()
        answer = ask()
        seconds.append(time.perf_counter() - began)
        bar.update()
    bar.close()
    peak = memory("VmHWM")
    sums = {} if answer is None else checksums(one.normalized(answer))
    first, *others = seconds
    return {"first": first, "seconds": others, "idle": idle, "peak": peak, "answer": sums}


def checksums(answer: dict[str, Any]) -> dict[str, float]:
    """Return the number of rows of a normalized answer and the sum of each numeric column."""
    sums = {name: float(np.sum(each, dtype=np.float64)) for name, each in answer.items()
            if name != "layer"}  # fmt: skip
    return {"rows": len(answer["step"]), **sums}


def memory(what: str) -> int:
    """Return the memory of this process in bytes: current (VmRSS) or peak (VmHWM); 0 if unknown.

    Not the peak of ``getrusage``, which includes the parent process before the fork.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(what)), 0)
