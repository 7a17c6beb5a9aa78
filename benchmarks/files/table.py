"""Tables of the cost of a run's files, for the terminal and the pages."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.results import RESULTS
from benchmarks.common.tables import FAILS, MISSING, shown

RESULT = RESULTS / "files.json"

HOW = (
    "Medians of repeated queries; trustlens caches decompressed overview data. "
    "The first time is measured in a process that has just opened the run. pyarrow, DuckDB and "
    "Polars query the same Parquet files. TensorBoard's time is extrapolated: the time that its "
    "EventAccumulator needs for one scalar, times the number of scalars of the quantity, since it "
    "reads all of them; the file is assumed to hold no other quantity."
)

Result = Mapping[str, Any]
Find = Callable[[Result], float]


@dataclass(frozen=True)
class Row:
    """A row of the table: description, goal, a function that finds the value, and unit."""

    what: str
    goal: str
    find: Find
    unit: str
    summary: str = ""  # description in the README; empty if it is not shown there


def of_run(kind: str, key: str) -> Find:
    """Return a function that finds a size of a run's files."""
    return lambda result: result["sizes"][kind][key]


def of_writing(key: str) -> Find:
    """Return a function that finds a cost of writing."""
    return lambda result: result["writing"][key]


def of_loop(contender: str, key: str) -> Find:
    """Return a function that finds a percentage of the Python loop and the writer thread."""
    return lambda result: result["writing"]["beside"]["contenders"][contender][key]


ROWS = (
    Row(
        "bytes per value, lossless",
        "≤ 2.5",
        of_run("lossless", "bytes_per_value"),
        "B",
        summary="bytes per value, lossless",
    ),
    Row(
        "bytes per value, rounded to 12 bits",
        "≤ 1.45",
        of_run("rounded", "bytes_per_value"),
        "B",
        summary="bytes per value, `precision=12`",
    ),
    Row("the overview's share of the run", "≤ 10 %", of_run("lossless", "overview_percent"), "%"),
    Row(
        "write throughput on one core, uncompressed values",
        "≥ 150 MB/s",
        of_writing("mb_s"),
        "MB/s",
    ),
    Row(
        "appending one step of 300 layers, in batches of 64 steps",
        "≤ 30 µs",
        of_writing("step_us"),
        "µs",
    ),
    Row("the same, including sealing", "", of_writing("step_sealed_us"), "µs"),
    Row(
        "slow-down of a pure-Python loop while the writer thread writes 200 steps/s",
        "< 1 %",
        of_loop("writer", "added_percent"),
        "%",
    ),
    Row("the same, without building the rows", "", of_loop("files", "added_percent"), "%"),
    Row(
        "share of its time that this loop waits for the interpreter lock or a core",
        "",
        of_loop("writer", "waits_percent"),
        "%",
    ),
    Row("the same share without a writer thread", "", of_loop("alone", "waits_percent"), "%"),
    Row("longest append in 100,000 steps", "", of_writing("longest_ms"), "ms"),
    Row("peak memory of a process that wrote 1,000 steps", "", of_writing("early_peak_mib"), "MiB"),
    Row(
        "peak memory of a process that wrote 100,000 steps",
        "the same",
        of_writing("late_peak_mib"),
        "MiB",
    ),
)

QUERIES = {
    "open": ("open the run", "≤ 15 ms"),
    "ridges": ("one quantity of all layers, downsampled to 100 ranges of steps", "≤ 4 ms"),
    "heatmap": ("one quantity of all layers, downsampled to 400 ranges of steps", "≤ 10 ms"),
    "curve": ("one quantity of one layer, downsampled to 1,000 ranges of steps", "≤ 6 ms"),
    "latest": ("all layers, the last 256 steps", "≤ 10 ms"),
    "one_layer": ("one layer, every step", ""),
    "at_steps": ("all layers at 100 steps", ""),
}
OTHERS = ("pyarrow", "DuckDB", "Polars")


def cell(find: Find, result: Result, unit: str) -> str:
    """Return a value as text."""
    try:
        return shown(find(result), unit)
    except KeyError as error:
        return FAILS if error.args[0] in ("ms", "first_ms", "mb_s", "bytes_per_value") else MISSING


def goals(result: Result) -> list[str]:
    """Return the table of goals and measurements, without the queries."""
    lines = [f"| {result.get('what', 'the files of a run')} | goal | measured |", "|---|---|---|"]
    return lines + [
        f"| {row.what} | {row.goal} | {cell(row.find, result, row.unit)} |" for row in ROWS
    ]


def summary(result: Result) -> list[str]:
    """Return the table of the README: the size of the files, and the times of three queries."""
    lines = [f"| {result.get('what', 'the files of a run')} | |", "|---|---|"]
    lines += [
        f"| {row.summary} | {cell(row.find, result, row.unit)} |" for row in ROWS if row.summary
    ]
    for query in ("open", "heatmap", "curve"):
        time = cell(_time("once", query, "trustlens"), result, "ms")
        lines.append(f"| {QUERIES[query][0]} | {time} |")
    return lines


def formats(result: Result) -> list[str]:
    """Return the table of the same values in other formats, smallest first."""
    entries: Result = result.get("sizes", {}).get("formats", {})
    names = sorted(entries, key=lambda name: entries[name].get("bytes_per_value", float("inf")))
    head = ["the same values in other formats, one core", "bytes per value"]
    head += ["write throughput", "measured on"]
    lines = [f"| {' | '.join(head)} |", "|---|---|---|---|"]
    for name in names:
        entry = entries[name]
        size = cell(lambda _, entry=entry: entry["bytes_per_value"], result, "B")
        speed = cell(lambda _, entry=entry: entry["mb_s"], result, "MB/s")
        of = f"{entry['steps']:,} steps" if "steps" in entry else ""
        bold = f"**{name}**" if name == "trustlens" else name
        lines.append(f"| {bold}: {entry['what']} | {size} | {speed} | {of} |")
    return lines


def queries(result: Result) -> list[str]:
    """Return the table of the queries."""
    head = ["query, warm", "goal", "**trustlens**", "first time", "with 10 × the steps"]
    head += [*OTHERS, "TensorBoard"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for query, (what, goal) in QUERIES.items():
        own = cell(_time("once", query, "trustlens"), result, "ms")
        first = cell(_time("once", query, "trustlens", "first_ms"), result, "ms")
        ten = cell(_time("tenfold", query, "trustlens"), result, "ms")
        others = [cell(_time("once", query, engine), result, "ms") for engine in OTHERS]
        board = cell(lambda each, query=query: _scaled(query, each), result, "ms")
        cells = [what, goal, own, first, ten, *others, "" if query == "open" else board]
        lines.append(f"| {' | '.join(cells)} |")
    memory = [cell(_peak("once", engine), result, "MiB") for engine in ("trustlens", *OTHERS)]
    cells = [f"{QUERIES['heatmap'][0]}: peak memory of the process", "", memory[0], ""]
    cells += [cell(_peak("tenfold", "trustlens"), result, "MiB"), *memory[1:], ""]
    return [*lines, f"| {' | '.join(cells)} |"]


def _time(times: str, query: str, engine: str, key: str = "ms") -> Find:
    return lambda result: result["queries"][times]["queries"][query][engine][key]


def _peak(times: str, engine: str) -> Find:
    return lambda result: result["queries"][times]["queries"]["heatmap"][engine]["peak_mib"]


def _scaled(query: str, result: Result) -> float:
    """Return the time in ms in which TensorBoard reads all scalars of the series of a query."""
    series = 1 if query in ("one_layer", "curve") else result["layers"]
    return result["queries"]["TensorBoard"]["scalar_us"] * result["steps"] * series / 1e3


def measured_on(result: Result) -> list[str]:
    """Return the machine, the date and the method of the measurements."""
    machine, versions = result["machine"], result["versions"]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    place = f"{machine['cpu']}, {machine['cores']} cores, {packages}, {result['date']}"
    return [f"<sub>{place}. {HOW}</sub>"]


def block(result: Result) -> str:
    """Return all tables as one block of Markdown."""
    parts = [goals(result), queries(result), formats(result)]
    if "machine" in result:
        parts.append(measured_on(result))
    return "\n\n".join("\n".join(part) for part in parts)


def read(path: Path = RESULT) -> Result:
    """Return the result; empty if there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
