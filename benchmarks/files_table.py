"""The tables of what a run's files cost, for the terminal and the README."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULT = Path(__file__).with_name("results") / "files.json"
BEGIN, END = "<!-- files -->", "<!-- /files -->"
MISSING = "not measured"
FAILS = "does not run"

HOW = (
    "Medians of a question that was asked before: trustlens keeps up to 64 MiB of what it unpacked "
    "of the overview. The first time is that of a process which has just opened the run. The "
    "others' times for a query are on the same Parquet files. TensorBoard's are "
    "scaled: what its EventAccumulator took for each scalar of one layer, times those of the "
    "quantity that is asked about, all of which it reads, as if the file had no other quantity."
)

Result = Mapping[str, Any]
Find = Callable[[Result], float]


@dataclass(frozen=True)
class Row:
    """A figure of ours: what it is of, the goal, where it is found, and its unit."""

    what: str
    goal: str
    find: Find
    unit: str


def of_run(kind: str, key: str) -> Find:
    """Return a function that finds what a run's files take."""
    return lambda result: result["sizes"][kind][key]


def of_writing(key: str) -> Find:
    """Return a function that finds what writing costs."""
    return lambda result: result["writing"][key]


def of_loop(contender: str, key: str) -> Find:
    """Return a function that finds what a loop loses beside a writer, or waits, in percent."""
    return lambda result: result["writing"]["beside"]["contenders"][contender][key]


def slower_at_ten(query: str) -> Find:
    """Return a function that finds a query's time at ten times the steps, in times of its own."""

    def find(result: Result) -> float:
        once, ten = (
            result["queries"][each]["queries"][query]["trustlens"]["ms"]
            for each in ("once", "tenfold")
        )
        return ten / once

    return find


ROWS = (
    Row("bytes per value, nothing lost", "≤ 2.5", of_run("lossless", "bytes_per_value"), "B"),
    Row(
        "bytes per value, rounded to 12 bits",
        "≤ 1.45",
        of_run("rounded", "bytes_per_value"),
        "B",
    ),
    Row("the overview's share of the run", "≤ 10 %", of_run("lossless", "overview_percent"), "%"),
    Row("written on one core, raw values", "≥ 150 MB/s", of_writing("mb_s"), "MB/s"),
    Row("a step of 300 layers, 64 together", "≤ 30 µs", of_writing("step_us"), "µs"),
    Row("the same, with sealing", "", of_writing("step_sealed_us"), "µs"),
    Row(
        "a loop in Python beside the writer's thread, 200 steps/s: takes longer by",
        "< 1 %",
        of_loop("writer", "added_percent"),
        "%",
    ),
    Row("the same, if its rows are made already", "", of_loop("files", "added_percent"), "%"),
    Row(
        "of its time it waits for the lock, or a core", "", of_loop("writer", "waits_percent"), "%"
    ),
    Row("as much as it does alone", "", of_loop("alone", "waits_percent"), "%"),
    Row("the longest append in 100,000 steps", "", of_writing("longest_ms"), "ms"),
    Row("memory of a process that wrote 1,000 steps", "", of_writing("early_peak_mib"), "MiB"),
    Row("that wrote 100,000", "the same", of_writing("late_peak_mib"), "MiB"),
)

ASKED = {
    "open": ("open the run", "≤ 15 ms"),
    "ridges": ("all layers in 100 buckets of steps or fewer", "≤ 4 ms"),
    "heatmap": ("all layers in 400 buckets or fewer", "≤ 10 ms"),
    "curve": ("one layer, all steps, in 1,000 buckets or fewer", "≤ 6 ms"),
    "latest": ("all layers, the last 256 steps", "≤ 10 ms"),
    "one_layer": ("one layer, every step, as they are", ""),
    "at_steps": ("all layers at 100 steps, as they are", ""),
}
OTHERS = ("pyarrow", "DuckDB", "Polars")


def shown(value: float, unit: str) -> str:
    """Return a number with its unit, to three digits or so; many seconds as such."""
    if unit == "ms" and value >= 1e4:
        value, unit = value / 1e3, "s"
    digits = next((n for n, bound in ((2, 10), (1, 100)) if abs(value) < bound), 0)
    text = f"{value:,.{digits}f}".replace("-", "−")
    return f"{text.removeprefix('−') if float(f'{value:.{digits}f}') == 0 else text} {unit}"


def cell(find: Find, result: Result, unit: str) -> str:
    """Return a figure as text."""
    try:
        return shown(find(result), unit)
    except KeyError as error:
        return FAILS if error.args[0] in ("ms", "first_ms", "mb_s", "bytes_per_value") else MISSING


def ours(result: Result) -> list[str]:
    """Return the table of what was to be reached beside the queries."""
    lines = [f"| {result.get('what', 'the files of a run')} | goal | measured |", "|---|---|---|"]
    return lines + [
        f"| {row.what} | {row.goal} | {cell(row.find, result, row.unit)} |" for row in ROWS
    ]


def formats(result: Result) -> list[str]:
    """Return the table of the same numbers in other formats, the smallest first."""
    entries: Result = result.get("sizes", {}).get("formats", {})
    names = sorted(entries, key=lambda name: entries[name].get("bytes_per_value", float("inf")))
    lines = ["| the same numbers, written on one core | bytes per value | raw values | of |"]
    lines.append("|---|---|---|---|")
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
    head = ["asked, warm", "goal", "**trustlens**", "its first time", "at 10 × the steps"]
    head += [*OTHERS, "TensorBoard"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for query, (what, goal) in ASKED.items():
        own = cell(_time("once", query, "trustlens"), result, "ms")
        first = cell(_time("once", query, "trustlens", "first_ms"), result, "ms")
        ten = cell(_time("tenfold", query, "trustlens"), result, "ms")
        others = [cell(_time("once", query, engine), result, "ms") for engine in OTHERS]
        board = cell(lambda each, query=query: _scaled(query, each), result, "ms")
        cells = [what, goal, own, first, ten, *others, "" if query == "open" else board]
        lines.append(f"| {' | '.join(cells)} |")
    memory = [cell(_peak("once", engine), result, "MiB") for engine in ("trustlens", *OTHERS)]
    cells = [f"{ASKED['heatmap'][0]}: memory of the process, at most", "", memory[0], ""]
    cells += [cell(_peak("tenfold", "trustlens"), result, "MiB"), *memory[1:], ""]
    return [*lines, f"| {' | '.join(cells)} |"]


def _time(times: str, query: str, engine: str, key: str = "ms") -> Find:
    return lambda result: result["queries"][times]["queries"][query][engine][key]


def _peak(times: str, engine: str) -> Find:
    return lambda result: result["queries"][times]["queries"]["heatmap"][engine]["peak_mib"]


def _scaled(query: str, result: Result) -> float:
    """Return how long TensorBoard reads the series that a query is about, all of their scalars."""
    series = 1 if query in ("one_layer", "curve") else result["layers"]
    return result["queries"]["TensorBoard"]["scalar_us"] * result["steps"] * series / 1e3


def where(result: Result) -> list[str]:
    """Return on which machine, when, and how what stands here was measured."""
    machine, versions = result["machine"], result["versions"]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    place = f"{machine['cpu']}, {machine['cores']} cores, {packages}, {result['date']}"
    return [f"<sub>{place}. {HOW}</sub>"]


def block(result: Result) -> str:
    """Return what stands between the markers."""
    parts = [ours(result), queries(result), formats(result)]
    if "machine" in result:
        parts.append(where(result))
    return "\n\n".join("\n".join(part) for part in parts)


def read(path: Path = RESULT) -> Result:
    """Return the result; empty if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def replaced(text: str, result: Result) -> str:
    """Return a page with the tables between its markers.

    Raises
    ------
    ValueError
        The markers are not there, once.
    """
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"got a page without {BEGIN} … {END}; put them where the tables belong")
    return pattern.sub(lambda _: f"{BEGIN}\n\n{block(result)}\n\n{END}", text)
