"""Measure a run's files: how large, how soon written, how soon asked; beside those of others.

The run is recorded once from a training of 300 small layers and kept. What lies there from an
older trustlens is used as it is: remove it where the files have changed since.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common.measure import described, quartiles
from benchmarks.common.results import REPOSITORY, RESULTS, at_least_one, write
from benchmarks.files import table as files_table
from benchmarks.files.formats import FORMATS, ROW_BYTES, size
from benchmarks.files.queries import ENGINES, QUERIES
from benchmarks.files.recorded_run import LAYERS, recorded
from trustlens.schema import RECORDED
from trustlens.store.run_info import read_info

PACKAGES = ("pyarrow", "duckdb", "polars", "tensorboard", "pandas")
MANTISSA = 12  # bits
SCALARS = 100_000  # of a series that TensorBoard reads
QUANTITIES = 2  # series
OURS = "trustlens"
TURNS = 5
EXAMPLE = """example:
  python -m benchmarks.files                                  100,000 steps: 2 GB in build/files
  python -m benchmarks.files --tenfold                        and 1,000,000 of them: 20 GB
  python -m benchmarks.files --steps 5000 --only queries --to /tmp/tried    quickly
"""

_CODE = """
import json, sys
try:
    from {module} import {function}
    found = {function}(**json.loads(sys.argv[1]))
except Exception as error:
    found = {{"error": type(error).__name__ + ": " + (str(error).splitlines() or [""])[0][:200]}}
print(json.dumps(found))
"""

Found = dict[str, Any]


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        epilog=EXAMPLE,
        prog="python -m benchmarks.files",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = REPOSITORY / "build" / "files"
    parser.add_argument("--runs", type=Path, default=default, metavar="FOLDER", help="of the runs")
    parser.add_argument("--steps", type=at_least_one, default=100_000, metavar="N", help="of a run")
    parser.add_argument("--tenfold", action="store_true", help="ask one of ten times the steps too")
    parser.add_argument("--rounds", type=at_least_one, default=5, metavar="N", help="of writing")
    parser.add_argument("--only", nargs="+", metavar="PART", choices=PARTS, default=list(PARTS))
    parser.add_argument("--to", type=Path, default=RESULTS, metavar="FOLDER", help="of the results")
    return parser.parse_args(arguments)


def fresh(module: str, function: str, **arguments: Any) -> Found:
    """Return what a function of one of these modules returns in a process of its own.

    Raises
    ------
    RuntimeError
        The function raised, or the process was ended; the message says which.
    """
    code = _CODE.format(module=module, function=function)
    paths = [*filter(None, [os.environ.get("PYTHONPATH")]), str(REPOSITORY)]
    done = subprocess.run(  # noqa: S603 — this Python, this code
        [sys.executable, "-c", code, json.dumps(arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,  # its bars are seen
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"its process ended with {done.returncode}")
    found = json.loads(done.stdout.splitlines()[-1])
    if "error" in found:
        raise RuntimeError(found["error"])
    return found


def spread(name: str, values: Sequence[float], digits: int = 3) -> Found:
    """Return the median of some values under a name, with its quartiles."""
    low, high = quartiles(values)
    return {
        name: round(statistics.median(values), digits),
        f"{name}_quartiles": [round(low, digits), round(high, digits)],
    }


def run_of(asked: argparse.Namespace, times: int = 1, **options: Any) -> Path:
    """Return the run to be measured, recorded if it is not there."""
    marks = [f"{name}-{value}" for name, value in options.items()]
    steps = asked.steps * times
    return recorded(asked.runs / "-".join([f"steps-{steps}", *marks]), steps, **options)


def parts_of(run: Path) -> Found:
    """Return the bytes of a run, and of its ``layers`` for each value."""
    steps = read_info(run).config["steps"]
    values = steps * LAYERS * len(RECORDED)
    whole, overview = size(run), run / "overview"
    found = {
        "steps": steps,
        "values": values,
        "bytes": whole,
        "bytes_per_value": round(size(run / "layers") / values, 4),
    }
    if overview.exists():
        found["overview_percent"] = round(100 * size(overview) / whole, 3)
    return found


def sizes(asked: argparse.Namespace) -> Found:
    """Measure the bytes of our runs, and bytes and speed of the same numbers in other formats."""
    run = run_of(asked)
    found: Found = {"lossless": parts_of(run)}
    found["rounded"] = parts_of(run_of(asked, precision=MANTISSA))
    formats: Found = {}
    for name, form in tqdm(FORMATS.items(), desc="formats", unit="format", leave=False):
        formats[name] = {"what": form.what} | tried(lambda name=name: written(name, run, asked))
    return {**found, "formats": formats}


def written(name: str, run: Path, asked: argparse.Namespace) -> Found:
    """Return the bytes a value has in a format, and its speed on one core."""
    one = fresh("benchmarks.files.formats", "measure", name=name, run=str(run), rounds=asked.rounds)
    return {
        "steps": one["steps"],
        "bytes_per_value": round(one["bytes"] / one["rows"] / len(RECORDED), 3),
        **spread("mb_s", [one["rows"] * ROW_BYTES / 1e6 / each for each in one["seconds"]]),
    }


def queries(asked: argparse.Namespace) -> Found:
    """Ask our reader and others, of the run and of one of ten times its steps."""
    run = run_of(asked)
    runs = {"once": run, "tenfold": run_of(asked, times=10)} if asked.tenfold else {"once": run}
    found: Found = dict(answers(runs))
    steps = min(SCALARS, asked.steps)
    one = fresh(
        "benchmarks.files.formats", "accumulated", run=str(run), steps=steps, quantities=QUANTITIES
    )
    found["TensorBoard"] = {
        "what": f"EventAccumulator, {one['scalars']} scalars of one layer",
        **spread("scalar_us", [each / one["scalars"] * 1e6 for each in one["seconds"]]),
    }
    return found


def answers(runs: Mapping[str, Path]) -> dict[str, Found]:
    """Return the times of all queries to runs; an answer that differs from ours is no answer.

    Ours are asked in turns, one run after the other, since a machine has slow minutes.
    """
    found = {name: {**about(run), "queries": {}} for name, run in runs.items()}
    for query in tqdm(QUERIES, desc="queries", unit="query", leave=False):
        ours: dict[str, Found] = {}
        for engine in ENGINES:
            entries: dict[str, list[Found]] = {name: [] for name in runs}
            for _ in range(TURNS if engine == OURS else 1):
                for name, run in runs.items():
                    named = {"engine": engine, "query": query, "run": str(run)}
                    named["about"] = {key: found[name][key] for key in ("last", "layer", "widths")}
                    one = tried(
                        lambda named=named: fresh("benchmarks.files.queries", "measure", **named)
                    )
                    entries[name].append(one)
            for name in runs:
                entry = pooled(entries[name])
                answer = entry.pop("answer", None)
                right = ours.setdefault(name, answer or {})
                told = timed(entry) if same(answer, right) else refused(entry, answer)
                found[name]["queries"].setdefault(query, {})[engine] = told
    return found


def about(run: Path) -> Found:
    """Return what a run is asked about."""
    info = read_info(run)
    layer = info.layers[len(info.layers) // 2].name
    widths = fresh("benchmarks.files.queries", "widths", run=str(run))
    return {"last": info.config["steps"], "layer": layer, "widths": widths}


def pooled(entries: Sequence[Found]) -> Found:
    """Return what was measured in several turns as one; the first turn that failed, if one did."""
    failed = next((entry for entry in entries if "why" in entry), None)
    if failed is not None:
        return failed
    return {
        "first": statistics.median(entry["first"] for entry in entries),
        "seconds": [each for entry in entries for each in entry["seconds"]],
        "idle": max(entry["idle"] for entry in entries),
        "peak": max(entry["peak"] for entry in entries),
        "answer": entries[0]["answer"],
    }


def same(answer: Found | None, ours: Found) -> bool:
    """Tell whether two answers have as many rows and the same sums, up to rounding."""
    return answer is not None and all(
        abs(value - answer.get(name, float("nan"))) <= 1e-6 * abs(value)
        for name, value in ours.items()
    )


def refused(entry: Found, answer: Found | None) -> Found:
    """Return why there is no time: an error, or an answer that is not the one asked for."""
    return entry if "why" in entry else {"why": f"another answer: {answer}"}


def timed(entry: Found) -> Found:
    """Return a query's times in milliseconds, and the memory of its process in MiB."""
    return {
        **spread("ms", [each * 1e3 for each in entry["seconds"]]),
        "rounds": len(entry["seconds"]),
        "first_ms": round(entry["first"] * 1e3, 3),
        "idle_mib": round(entry["idle"] / 2**20, 1),
        "peak_mib": round(entry["peak"] / 2**20, 1),
    }


def writing(asked: argparse.Namespace) -> Found:
    """Measure what a step costs to write, what a loop beside it loses, and the memory it takes."""
    run = str(run_of(asked))
    count = min(asked.steps, 10_000)
    turns = tqdm(range(asked.rounds), desc="steps", unit="round", leave=False)
    steps = [fresh("benchmarks.files.writing", "steps", run=run, count=count) for _ in turns]
    whole = [sum(one["plain"]) + sum(one["sealing"]) for one in steps]
    plain = [each / one["of_a_batch"] for one in steps for each in one["plain"]]
    memory = fresh("benchmarks.files.writing", "held", run=run)
    beside = fresh("benchmarks.files.beside", "measure", run=run, rounds=6 * asked.rounds)
    return {
        **spread("step_us", [each * 1e6 for each in plain], 2),
        **spread("step_sealed_us", [each / count * 1e6 for each in whole], 2),
        **spread("mb_s", [count * LAYERS * ROW_BYTES / 1e6 / each for each in whole]),
        "beside": beside,
        "memory_steps": memory["steps"],
        "longest_ms": round(memory["longest"] * 1e3, 1),
        **{
            f"{name}_mib": round(memory[name] / 2**20, 1)
            for name in ("before", "early", "late", "early_peak", "late_peak")
        },
    }


PARTS: dict[str, Callable[[argparse.Namespace], Found]] = {
    "sizes": sizes,
    "queries": queries,
    "writing": writing,
}


def tried(measured: Callable[[], Found]) -> Found:
    """Return what was measured, or why it could not be."""
    try:
        return measured()
    except RuntimeError as error:
        return {"why": str(error)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what was asked for, write it and print it as tables; return 1 if a part failed."""
    asked = parsed(arguments)
    asked.runs.mkdir(parents=True, exist_ok=True)
    what = f"the files of a run of {LAYERS} layers × {asked.steps:,} steps × {len(RECORDED)} values"
    result: Found = {"case": "files", "what": what, "layers": LAYERS, "steps": asked.steps}
    result |= described(asked.rounds, PACKAGES)
    failed = False
    for part in asked.only:
        result[part] = tried(partial(PARTS[part], asked))
        write(
            asked.to, "files", result
        )  # what was measured stays, should the next part be broken off
        if "why" in result[part]:
            print(f"{part}: {result[part]['why']}", file=sys.stderr)
            failed = True
    print(files_table.block(result))
    return 1 if failed else 0
