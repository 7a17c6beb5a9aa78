"""Tables of the cost of recording, from ``benchmarks/results/*.json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.results import RESULTS
from benchmarks.common.tables import FAILS, MISSING, shown

Result = Mapping[str, Any]
Results = Mapping[str, Result]


@dataclass(frozen=True)
class Row:
    """A row of the table: description, goal, case, a function that finds the value, and unit."""

    what: str
    goal: str
    case: str
    find: Callable[[Result], float | None]
    unit: str
    summary: str = ""  # description in the README; empty if it is not shown there

    def value(self, results: Results) -> str:
        """Return the value as text."""
        result = results.get(self.case)
        if result is None:
            return MISSING
        try:
            found = self.find(result)
        except KeyError:  # the case failed, and its entry says why
            found = None
        return FAILS if found is None else shown(found, self.unit)


def added(name: str = "trustlens", per: str = "percent", times: float = 1.0) -> Any:
    """Return a function that finds the time that a contender adds to a step."""
    return lambda result: result["contenders"][name][f"added_{per}"] * times


def relative_to_loop(result: Result) -> float:
    """Return the time that trustlens adds relative to the time that the usual loop adds."""
    contenders = result["contenders"]
    return contenders["trustlens"]["added_ms"] / contenders["usual loop"]["added_ms"]


def value_of(key: str, times: float = 1.0) -> Any:
    """Return a function that finds a number of a case."""
    return lambda result: result[key] * times


def many_relative_to_few(result: Result) -> float:
    """Return the host time for 3,000 layers relative to that for 150."""
    few, many = (result["contenders"][f"trustlens, {n} layers"] for n in (150, 3000))
    return many["added_ms"] / few["added_ms"]


GPU = "on a GPU: "
ROWS = (
    Row(
        "GPT, 10.9 M parameters, batch 8 × 256, every step",
        "≤ 1.2 %",
        "gpt",
        added(),
        "%",
        summary="to every step of a GPT of 10.9 M parameters, on the CPU",
    ),
    Row(
        "the same, relative to a per-parameter `.norm().item()` loop",
        "≤ 0.12",
        "gpt",
        relative_to_loop,
        "×",
    ),
    Row(
        "MNIST CNN, batch 512, every step",
        "≤ 0.3 %",
        "mnist",
        added(),
        "%",
        summary="to every step of an MNIST CNN of 0.43 M parameters, on the CPU",
    ),
    Row(
        "100 M parameters in 150 tensors, relative to the fused AdamW step",
        "≤ 0.9 ×",
        "large",
        added(times=0.01),
        "×",
    ),
    Row("150 tensors of 32 × 32", "≤ 200 µs", "small", added(per="ms", times=1e3), "µs"),
    Row(
        "a step that is not recorded",
        "< 20 µs",
        "gap",
        added(per="ms", times=1e3),
        "µs",
        summary="to each step that is not recorded (`every=1000`), 150 layers",
    ),
    Row("overhead of recording our LAMB", "0", "lamb", added("Lamb, recorded"), "%"),
    Row("overhead of recording our LARS", "0", "lamb", added("Lars, recorded"), "%"),
    Row(f"{GPU}GPT-2, bf16, batch 32 × 1024, every step", "≤ 0.5 %", "gpu-gpt2", added(), "%"),
    Row(
        f"{GPU}the same with element histograms at every step",
        "≤ 1.5 %",
        "gpu-gpt2",
        added("trustlens, histograms"),
        "%",
    ),
    Row(
        f"{GPU}sums of 1 B parameters, relative to reading them once at copy bandwidth",
        "≤ 1.25 ×",
        "gpu-kernel",
        value_of("times_reading"),
        "×",
    ),
    Row(
        f"{GPU}host time in the hooks, 150 layers",
        "≤ 150 µs",
        "gpu-host",
        added("trustlens, 150 layers", "ms", 1e3),
        "µs",
    ),
    Row(
        f"{GPU}3,000 layers, relative to 150 layers", "≤ 2 ×", "gpu-host", many_relative_to_few, "×"
    ),
    Row(f"{GPU}memory on the device", "≤ 16 MiB", "gpu-memory", value_of("device_mib"), "MiB"),
    Row(
        "importing the recorder, after torch and its optimizers",
        "≤ 50 ms",
        "start",
        value_of("import_record_ms"),
        "ms",
    ),
    Row("`record()`", "", "start", value_of("record_ms"), "ms"),
    Row(
        "`record()`, with the one-time build of the compiled loop",
        "",
        "start",
        value_of("record_building_ms"),
        "ms",
    ),
    Row(
        "`close()` after 20,000 steps of 50 layers",
        "≤ 1 s",
        "start",
        value_of("close_ms", 1e-3),
        "s",
    ),
)

SIDE_BY_SIDE = {"gpt": "GPT", "mnist": "MNIST CNN"}
LAMBS = {
    "Lamb": "`trustlens.optim.Lamb`",
    "Lars": "`trustlens.optim.Lars`",
    "torch-optimizer": "torch-optimizer's Lamb",
    "pytorch_optimizer": "pytorch_optimizer's Lamb",
    "timm": "timm's Lamb",
}


def figures(results: Results) -> list[str]:
    """Return the table of goals and measurements."""
    lines = ["| what recording adds | goal | measured |", "|---|---|---|"]
    return lines + [f"| {row.what} | {row.goal} | {row.value(results)} |" for row in ROWS]


def summary(results: Results) -> list[str]:
    """Return the table of the README: some of the rows, without goals."""
    lines = ["| time that recording adds | |", "|---|---|"]
    shortened = [(row.summary, row.value(results)) for row in ROWS if row.summary]
    return lines + [f"| {what} | {value} |" for what, value in shortened]


def side_by_side(results: Results) -> list[str]:
    """Return the table of the time that each package adds to the same step, cheapest first."""
    found = {case: results.get(case, {}).get("contenders", {}) for case in SIDE_BY_SIDE}
    names = dict.fromkeys(name for entries in found.values() for name in entries)
    names.pop("plain", None)
    order = sorted(names, key=lambda name: [_added(found[case].get(name)) for case in SIDE_BY_SIDE])
    head = " | ".join(SIDE_BY_SIDE.values())
    lines = [f"| at every step | {head} | on its own threads, GPT |", "|---|---|---|---|"]
    for name in order or ["trustlens"]:
        cells = [_cell(found[case].get(name)) for case in SIDE_BY_SIDE]
        threads = _thread_share(found["gpt"].get(name))
        bold = f"**{name}**" if name == "trustlens" else name
        lines.append(f"| {bold} | {' | '.join(cells)} | {threads} |")
    return lines


def lambs(results: Results) -> list[str]:
    """Return the table of LAMB steps, relative to torch's fused AdamW."""
    entries = results.get("lamb", {}).get("contenders", {})
    lines = ["| optimizer step | relative to torch's fused AdamW |", "|---|---|"]
    for key, name in LAMBS.items():
        entry = entries.get(key)
        share = None if entry is None or "why" in entry else 1 + entry["added_percent"] / 100
        nothing = MISSING if entry is None else FAILS
        lines.append(f"| {name} | {nothing if share is None else shown(share, '×')} |")
    return lines


def measured_on(results: Results) -> list[str]:
    """Return one line for each machine and date of the measurements."""
    places: dict[str, list[str]] = {}
    for name, result in results.items():
        machine, versions = result["machine"], result["versions"]
        on = f"{machine['gpu']}, " if machine["gpu"] else ""
        place = (
            f"{on}{machine['cpu']}, {machine['cores']} cores, Python {versions['python']}, "
            f"torch {versions['torch']}, {result['date']}"
        )
        places.setdefault(place, []).append(name)
    return [f"<sub>{', '.join(names)}: {place}.</sub>" for place, names in places.items()]


def block(results: Results) -> str:
    """Return all tables as one block of Markdown."""
    parts = [figures(results), side_by_side(results), lambs(results), measured_on(results)]
    return "\n\n".join("\n".join(part) for part in parts if part)


def read(folder: Path = RESULTS) -> dict[str, Result]:
    """Return the results by case, in the order of the rows."""
    results: dict[str, Result] = {}
    for case in dict.fromkeys(row.case for row in ROWS):
        path = folder / f"{case}.json"
        if path.exists():
            results[case] = json.loads(path.read_text(encoding="utf-8"))
    return results


def _added(entry: Result | None) -> float:
    return float("inf") if entry is None else entry.get("added_percent", float("inf"))


def _cell(entry: Result | None) -> str:
    if entry is None:
        return MISSING
    return FAILS if "why" in entry else shown(entry["added_percent"], "%")


def _thread_share(entry: Result | None) -> str:
    if entry is None or "thread_ms" not in entry or "why" in entry:
        return ""
    return shown(entry["thread_ms"] / entry["baseline_ms"] * 100, "%")
