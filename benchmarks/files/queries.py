"""The same questions to the same Parquet files: by our reader, pyarrow, DuckDB and Polars.

Without torch, since the memory of a process that asks is measured too. Each package is imported by
its own class, so that no process has another's.
"""

# What the methods return is told once, in `Engine`:
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
"""What is to be summed up in buckets of steps, in so many at most."""

STEPS = 100
LATEST = 256  # steps

ROUNDS = 30
PATIENCE = 8.0
"""Seconds after which a query is asked no further, once it has been asked three times."""


@dataclass(frozen=True)
class Asked:
    """What the queries are about: a run's last step, one of its layers, a bucket's steps.

    ``widths`` has them for each of `BUCKETS`: ours are those of the overview, and the others are
    asked for the same.
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
        """The first of the last steps."""
        return max(1, self.last - LATEST + 1)


class Engine:
    """Answers the queries, each in the way that is best for it.

    An answer has ``layer``, ``step`` (of a bucket: its place) and ``value`` or `SUMMARY`; it is in
    whatever form the package gives, and :meth:`told` brings it into one.
    """

    def __init__(self, run: Path) -> None:
        self.run = run

    def open(self) -> Any:
        """Begin anew; the run's columns are known then."""
        raise NotImplementedError

    def at_steps(self, asked: Asked) -> Any:
        """Return the values of all layers at some steps."""
        raise NotImplementedError

    def buckets(self, query: str, asked: Asked) -> Any:
        """Return the summary of each layer in each bucket; for a curve of one layer only."""
        raise NotImplementedError

    def ridges(self, asked: Asked) -> Any:
        """Return what a plot of ridges shows."""
        return self.buckets("ridges", asked)

    def heatmap(self, asked: Asked) -> Any:
        """Return what a heatmap shows."""
        return self.buckets("heatmap", asked)

    def curve(self, asked: Asked) -> Any:
        """Return what a plot of one layer shows."""
        return self.buckets("curve", asked)

    def one_layer(self, asked: Asked) -> Any:
        """Return the values of one layer at all steps."""
        raise NotImplementedError

    def latest(self, asked: Asked) -> Any:
        """Return the values of all layers at the last steps."""
        raise NotImplementedError

    def told(self, answer: Any) -> dict[str, Any]:
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
    """Ours, by what users type."""

    def __init__(self, run: Path) -> None:
        super().__init__(run)
        import trustlens  # noqa: PLC0415

        self.open_run = trustlens.open_run

    def open(self) -> Any:
        self.opened = self.open_run(self.run)

    def at_steps(self, asked: Asked) -> Any:
        return self.opened.matrix(QUANTITY, steps=asked.steps)

    def width(self, query: str) -> int:
        """Return the steps of our buckets."""
        return self.opened.downsample(QUANTITY, BUCKETS[query]).width

    def buckets(self, query: str, asked: Asked) -> Any:
        layers = [asked.layer] if query == "curve" else None
        return self.opened.downsample(QUANTITY, BUCKETS[query], layers=layers), layers

    def one_layer(self, asked: Asked) -> Any:
        return self.opened.layers([QUANTITY], layers=[asked.layer])

    def latest(self, asked: Asked) -> Any:
        return self.opened.matrix(QUANTITY, steps=slice(asked.latest, asked.last + 1))

    def told(self, answer: Any) -> dict[str, Any]:
        """Return matrices, buckets and rows alike as rows."""
        if isinstance(answer, tuple):
            read, layers = answer
            names = np.array(self.opened.layer_names if layers is None else layers)
            there = read.rows > 0
            place = ((read.steps - 1) // read.width)[:, None]
            columns = {"layer": names, "step": place, "min": read.low, "mean": read.mean,
                       "max": read.high}  # fmt: skip
            return super().told(
                {name: np.broadcast_to(each, there.shape)[there] for name, each in columns.items()}
            )
        if QUANTITY in answer:
            return super().told(answer.rename(columns={QUANTITY: "value"}))
        layers, steps = np.meshgrid(answer.columns, answer.index)
        value = answer.to_numpy().ravel()
        return super().told({"layer": layers.ravel(), "step": steps.ravel(), "value": value})

    def columns(self, answer: Any) -> list[str]:
        return list(answer)


class Arrow(Engine):
    """pyarrow.dataset; what is summed up streams through it."""

    def __init__(self, run: Path) -> None:
        super().__init__(run)
        import pyarrow as pa  # noqa: PLC0415
        import pyarrow.compute as pc  # noqa: PLC0415
        import pyarrow.dataset as ds  # noqa: PLC0415
        from pyarrow import acero  # noqa: PLC0415

        self.pa, self.pc, self.ds, self.acero = pa, pc, ds, acero

    def open(self) -> Any:
        self.data = self.ds.dataset(self.run / "layers", format="parquet")

    def at_steps(self, asked: Asked) -> Any:
        return self._where(self.pc.field("step").isin(asked.steps))

    def one_layer(self, asked: Asked) -> Any:
        return self._where(self.pc.field("layer") == asked.layer)

    def latest(self, asked: Asked) -> Any:
        return self._where(self.pc.field("step") >= asked.latest)

    def buckets(self, query: str, asked: Asked) -> Any:
        field, options = self.pc.field, self.acero
        bucket = self.pc.divide(field("step") - 1, asked.widths[query])
        columns = [field("layer").cast(self.pa.string()), bucket, field(QUANTITY)]
        sums = [("value", f"hash_{how}", None, how) for how in SUMMARY]
        read: dict[str, Any] = {"columns": ["step", "layer", QUANTITY]}
        wanted = field("layer") == asked.layer if query == "curve" else self.pc.scalar(True)
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
    """DuckDB, with a view of the files; it keeps their footers."""

    def __init__(self, run: Path) -> None:
        super().__init__(run)
        import duckdb  # noqa: PLC0415

        self.duckdb = duckdb

    def open(self) -> Any:
        self.connection = self.duckdb.connect()
        files = f"read_parquet('{self.run / 'layers' / '*.parquet'}')"
        self.connection.execute(f"CREATE VIEW layers AS SELECT * FROM {files}")  # noqa: S608
        self.connection.execute("SET parquet_metadata_cache = true")  # behind its first file

    def at_steps(self, asked: Asked) -> Any:
        return self._where(f"step IN ({', '.join(map(str, asked.steps))})")

    def one_layer(self, asked: Asked) -> Any:
        return self._where(f"layer = '{asked.layer}'")

    def latest(self, asked: Asked) -> Any:
        return self._where(f"step >= {asked.latest}")

    def buckets(self, query: str, asked: Asked) -> Any:
        sums = ", ".join(f"{how}({QUANTITY}) AS {how}" for how in SUMMARY)
        bucket = f"(step - 1) // {asked.widths[query]} AS step"
        where = f"WHERE layer = '{asked.layer}'" if query == "curve" else ""
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

    def at_steps(self, asked: Asked) -> Any:
        return self._where(self.pl.col("step").is_in(asked.steps))

    def one_layer(self, asked: Asked) -> Any:
        return self._where(self.pl.col("layer") == asked.layer)

    def latest(self, asked: Asked) -> Any:
        return self._where(self.pl.col("step") >= asked.latest)

    def buckets(self, query: str, asked: Asked) -> Any:
        value = self.pl.col(QUANTITY)
        bucket = ((self.pl.col("step") - 1) // asked.widths[query]).alias("step")
        sums = [getattr(value, how)().alias(how) for how in SUMMARY]
        rows = self.rows
        if query == "curve":
            rows = rows.filter(self.pl.col("layer") == asked.layer)
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
"""The names of the queries, which are those of the methods."""


def widths(run: str) -> dict[str, int]:
    """Return the steps of our buckets, by query."""
    ours = Trustlens(Path(run))
    ours.open()
    return {query: ours.width(query) for query in BUCKETS}


def measure(engine: str, query: str, run: str, about: dict[str, Any]) -> dict[str, Any]:
    """Ask a query again and again, in this process; the first time is told apart.

    Returns
    -------
    dict
        ``first`` and the other ``seconds``; the ``peak`` of memory in bytes, and what was in use
        before (``idle``); and of the answer the number of rows and the sum of each column.
    """
    one = ENGINES[engine](Path(run))
    asked = Asked(**about)
    idle, seconds = memory("VmRSS"), []
    one.open()
    ask = one.open if query == "open" else partial(getattr(one, query), asked)
    bar = tqdm(desc=f"{engine}, {query}", unit="query", total=ROUNDS, leave=False, delay=2)
    answer = None
    while len(seconds) <= ROUNDS and (len(seconds) <= 3 or sum(seconds) < PATIENCE):
        answer = None  # the one before goes, so that there is one at a time
        gc.collect()
        began = time.perf_counter()
        answer = ask()
        seconds.append(time.perf_counter() - began)
        bar.update()
    bar.close()
    peak = memory("VmHWM")
    sums = {} if answer is None else summed(one.told(answer))
    first, *others = seconds
    return {"first": first, "seconds": others, "idle": idle, "peak": peak, "answer": sums}


def summed(told: dict[str, Any]) -> dict[str, float]:
    """Return how many rows an answer has, and the sums of its columns of numbers."""
    sums = {name: float(np.sum(each, dtype=np.float64)) for name, each in told.items()
            if name != "layer"}  # fmt: skip
    return {"rows": len(told["step"]), **sums}


def memory(what: str) -> int:
    """Return this process's memory in bytes, now (VmRSS) or at most so far (VmHWM); 0 if unknown.

    Not the maximum that ``getrusage`` tells, in which is that of who started the process.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(what)), 0)
