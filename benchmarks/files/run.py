"""Measure a run's files: size, writing and queries, compared with other formats and readers.

The run is recorded once from a training of 300 small layers and then reused. A run that an older
trustlens recorded is reused as well: remove it if the file format has changed.
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

from benchmarks.common.measure import environment, quartiles
from benchmarks.common.results import REPOSITORY, RESULTS, at_least_one, write
from benchmarks.files import table as files_table
from benchmarks.files.formats import FORMATS, ROW_BYTES, size
from benchmarks.files.queries import ENGINES, QUERIES
from benchmarks.files.recorded_run import LAYERS, recorded
from trustlens.schema import RECORDED
from trustlens.store.run_info import read_info

PACKAGES = ("pyarrow", "duckdb", "polars", "tensorboard", "pandas")
MANTISSA = 12  # bits
SCALARS = 100_000  # per series that TensorBoard reads
QUANTITIES = 2  # series
OWN = "trustlens"
TURNS = 5
EXAMPLE = """example:
  python -m benchmarks.files                                  100,000 steps: 2 GB in build/files
  python -m benchmarks.files --tenfold                        also 1,000,000 steps: 20 GB
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


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        epilog=EXAMPLE,
        prog="python -m benchmarks.files",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = REPOSITORY / "build" / "files"
    parser.add_argument(
        "--runs", type=Path, default=default, metavar="FOLDER", help="folder for the recorded runs"
    )
    parser.add_argument(
        "--steps", type=at_least_one, default=100_000, metavar="N", help="steps of the run"
    )
    parser.add_argument(
        "--tenfold", action="store_true", help="also query a run with ten times the steps"
    )
    parser.add_argument(
        "--rounds", type=at_least_one, default=5, metavar="N", help="rounds of writing"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="PART",
        choices=PARTS,
        default=list(PARTS),
        help="measure only these parts",
    )
    parser.add_argument(
        "--to", type=Path, default=RESULTS, metavar="FOLDER", help="folder to write the results to"
    )
    return parser.parse_args(arguments)


def in_fresh_process(module: str, function: str, **arguments: Any) -> Found:
    """Call a function of a module in a fresh process and return its result.

    Raises
    ------
    RuntimeError
        If the function raised or the process was killed; the message says which.
    """
    code = _CODE.format(module=module, function=function)
    paths = [*filter(None, [os.environ.get("PYTHONPATH")]), str(REPOSITORY)]
    done = subprocess.run(  # noqa: S603 — this Python, this code
        [sys.executable, "-c", code, json.dumps(arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,  # progress bars go to stderr
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
    """Return the median of some values under a name, and the quartiles."""
    low, high = quartiles(values)
    return {
        name: round(statistics.median(values), digits),
        f"{name}_quartiles": [round(low, digits), round(high, digits)],
    }


def run_of(options: argparse.Namespace, times: int = 1, **recording: Any) -> Path:
    """Return the run to be measured; record it if it does not exist."""
    marks = [f"{name}-{value}" for name, value in recording.items()]
    steps = options.steps * times
    return recorded(options.runs / "-".join([f"steps-{steps}", *marks]), steps, **recording)


def size_of(run: Path) -> Found:
    """Return the size of a run, and the bytes per value of its ``layers``."""
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


def sizes(options: argparse.Namespace) -> Found:
    """Measure the size of the runs, and size and speed of the same values in other formats."""
    run = run_of(options)
    found: Found = {"lossless": size_of(run)}
    found["rounded"] = size_of(run_of(options, precision=MANTISSA))
    formats: Found = {}
    for name, form in tqdm(FORMATS.items(), desc="formats", unit="format", leave=False):
        formats[name] = {"what": form.what} | result_or_error(
            lambda name=name: written(name, run, options)
        )
    return {**found, "formats": formats}


def written(name: str, run: Path, options: argparse.Namespace) -> Found:
    """Return the bytes per value of a format, and its write throughput on one core."""
    one = in_fresh_process(
        "benchmarks.files.formats", "measure", name=name, run=str(run), rounds=options.rounds
    )
    return {
        "steps": one["steps"],
        "bytes_per_value": round(one["bytes"] / one["rows"] / len(RECORDED), 3),
        **spread("mb_s", [one["rows"] * ROW_BYTES / 1e6 / each for each in one["seconds"]]),
    }


def queries(options: argparse.Namespace) -> Found:
    """Query the run, and one with ten times its steps, with trustlens and other readers."""
    run = run_of(options)
    runs = {"once": run, "tenfold": run_of(options, times=10)} if options.tenfold else {"once": run}
    found: Found = dict(answers(runs))
    steps = min(SCALARS, options.steps)
    one = in_fresh_process(
        "benchmarks.files.formats",
        "read_tensorboard",
        run=str(run),
        steps=steps,
        quantities=QUANTITIES,
    )
    found["TensorBoard"] = {
        "what": f"EventAccumulator, {one['scalars']} scalars of one layer",
        **spread("scalar_us", [each / one["scalars"] * 1e6 for each in one["seconds"]]),
    }
    return found


def answers(runs: Mapping[str, Path]) -> dict[str, Found]:
    """Return the times of all queries; an answer that differs from that of trustlens is an error.

    trustlens queries the runs in turns, so that a slow minute of the machine affects all of them.
    """
    found = {name: {**parameters_of(run), "queries": {}} for name, run in runs.items()}
    for query in tqdm(QUERIES, desc="queries", unit="query", leave=False):
        expected: dict[str, Found] = {}
        for engine in ENGINES:
            entries: dict[str, list[Found]] = {name: [] for name in runs}
            for _ in range(TURNS if engine == OWN else 1):
                for name, run in runs.items():
                    named = {"engine": engine, "query": query, "run": str(run)}
                    named["values"] = {key: found[name][key] for key in ("last", "layer", "widths")}
                    one = result_or_error(
                        lambda named=named: in_fresh_process(
                            "benchmarks.files.queries", "measure", **named
                        )
                    )
                    entries[name].append(one)
            for name in runs:
                entry = pooled(entries[name])
                answer = entry.pop("answer", None)
                right = expected.setdefault(name, answer or {})
                shown = timed(entry) if is_same(answer, right) else error_of(entry, answer)
                found[name]["queries"].setdefault(query, {})[engine] = shown
    return found


def parameters_of(run: Path) -> Found:
    """Return the parameters of the queries to a run."""
    info = read_info(run)
    layer = info.layers[len(info.layers) // 2].name
    widths = in_fresh_process("benchmarks.files.queries", "widths", run=str(run))
    return {"last": info.config["steps"], "layer": layer, "widths": widths}


def pooled(entries: Sequence[Found]) -> Found:
    """Join the measurements of several turns; return the first that failed, if one did."""
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


def is_same(answer: Found | None, expected: Found) -> bool:
    """Return whether two answers have the same checksums, up to rounding."""
    return answer is not None and all(
        abs(value - answer.get(name, float("nan"))) <= 1e-6 * abs(value)
        for name, value in expected.items()
    )


def error_of(entry: Found, answer: Found | None) -> Found:
    """Return why there is no time: an error, or a different answer."""
    return entry if "why" in entry else {"why": f"a different answer: {answer}"}


def timed(entry: Found) -> Found:
    """Return the times of a query in milliseconds and the memory of its process in MiB."""
    return {
        **spread("ms", [each * 1e3 for each in entry["seconds"]]),
        "rounds": len(entry["seconds"]),
        "first_ms": round(entry["first"] * 1e3, 3),
        "idle_mib": round(entry["idle"] / 2**20, 1),
        "peak_mib": round(entry["peak"] / 2**20, 1),
    }


def writing(options: argparse.Namespace) -> Found:
    """Measure the time to write a step, the slow-down of a Python loop, and the memory."""
    run = str(run_of(options))
    count = min(options.steps, 10_000)
    turns = tqdm(range(options.rounds), desc="steps", unit="round", leave=False)
    steps = [
        in_fresh_process("benchmarks.files.writing", "steps", run=run, count=count) for _ in turns
    ]
    whole = [sum(one["plain"]) + sum(one["sealing"]) for one in steps]
    plain = [each / one["of_a_batch"] for one in steps for each in one["plain"]]
    memory = in_fresh_process("benchmarks.files.writing", "held", run=run)
    python_loop = in_fresh_process(
        "benchmarks.files.python_loop", "measure", run=run, rounds=6 * options.rounds
    )
    return {
        **spread("step_us", [each * 1e6 for each in plain], 2),
        **spread("step_sealed_us", [each / count * 1e6 for each in whole], 2),
        **spread("mb_s", [count * LAYERS * ROW_BYTES / 1e6 / each for each in whole]),
        "beside": python_loop,
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


def result_or_error(measure: Callable[[], Found]) -> Found:
    """Return the result, or why there is none."""
    try:
        return measure()
    except RuntimeError as error:
        return {"why": str(error)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the chosen parts, write and print the results; return 1 if a part failed."""
    options = parse(arguments)
    options.runs.mkdir(parents=True, exist_ok=True)
    what = (
        f"the files of a run of {LAYERS} layers × {options.steps:,} steps × {len(RECORDED)} values"
    )
    result: Found = {"case": "files", "what": what, "layers": LAYERS, "steps": options.steps}
    result |= environment(options.rounds, PACKAGES)
    failed = False
    for part in options.only:
        result[part] = result_or_error(partial(PARTS[part], options))
        write(options.to, "files", result)  # after each part, in case the next one is interrupted
        if "why" in result[part]:
            print(f"{part}: {result[part]['why']}", file=sys.stderr)
            failed = True
    print(files_table.block(result))
    return 1 if failed else 0
