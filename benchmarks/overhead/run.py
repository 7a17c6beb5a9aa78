"""Measure the cost of recording, and that of other packages.

Each case runs in a fresh process and writes a file to ``benchmarks/results/``. ``python -m
benchmarks.pages`` writes the tables of the documentation from these files.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.common.measure import environment, error_text
from benchmarks.common.results import RESULTS, at_least_one, write
from benchmarks.overhead.cases import CASES, Case

EXAMPLE = """example:
  python -m benchmarks.overhead                                all cases that this machine can run
  python -m benchmarks.overhead --only gpt mnist --rounds 5    two of them, quickly
  python -m benchmarks.overhead --only small --to /tmp/tried   results to another folder
  CC=false python -m benchmarks.overhead --only mnist --to /tmp/tried    without a C compiler

to measure the trustlens of another checkout, from a folder outside of both (if the other one has
benchmarks/ as a package too, its own cases are run):
  PYTHONPATH=/path/to/other:/path/to/this python -m benchmarks.overhead --only small --to /tmp/other
"""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        epilog=EXAMPLE,
        prog="python -m benchmarks.overhead",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=CASES, help="run only these cases"
    )
    parser.add_argument("--rounds", type=at_least_one, metavar="N", help="rounds of each case")
    parser.add_argument(
        "--to", type=Path, default=RESULTS, metavar="FOLDER", help="folder to write the results to"
    )
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument(
        "--here", action="store_true", help=argparse.SUPPRESS
    )  # in the fresh process
    return parser.parse_args(arguments)


def measure(name: str, case: Case, rounds: int, folder: Path) -> None:
    """Run a case and write its file."""
    found = case.run(rounds)
    result = {"case": name, "what": case.what, **environment(rounds, case.packages), **found}
    write(folder, name, result)


def printed(result: Mapping[str, Any]) -> str:
    """Return a case's result as a table for the terminal."""
    lines = [f"{result['case']}: {result['what']}"]
    machine = result["machine"]
    lines.append(
        f"  {machine['gpu'] or machine['cpu']}, {machine['cores']} cores, "
        f"torch {result['versions']['torch']}, {result['rounds']} rounds"
    )
    for name, entry in result.get("contenders", {}).items():
        if "why" in entry:
            lines.append(f"  {name:24} {entry['why']}")
            continue
        added = f"{entry['added_ms']:+11.3f} ms" if "added_ms" in entry else ""
        share = f"{entry['added_percent']:+9.2f} %" if "added_percent" in entry else ""
        threads = f"  threads {entry['thread_ms']:.3f} ms" if "thread_ms" in entry else ""
        lines.append(f"  {name:24}{entry['step_ms']:12.3f} ms{added}{share}{threads}")
    known = {"case", "what", "date", "machine", "versions", "rounds", "contenders"}
    lines += [f"  {key:24}{value:>12}" for key, value in result.items() if key not in known]
    return "\n".join(lines)


def in_fresh_process(name: str, rounds: int, folder: Path) -> bool:
    """Run a case in a fresh process; return whether it succeeded."""
    command = [sys.executable, "-m", "benchmarks.overhead", "--here", "--only", name]
    command += ["--rounds", str(rounds), "--to", str(folder)]
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, check=False, env=quiet)  # noqa: S603 — this script
    if done.returncode:
        print(f"{name}: failed with exit status {done.returncode}", file=sys.stderr)
        return False
    result = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    print(printed(result), end="\n\n", flush=True)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen cases; return the exit status: 1 if a case failed."""
    options = parse(arguments)
    if options.list:
        for name, case in CASES.items():
            print(f"{name:12} {case.what}{' (needs a CUDA device)' if case.needs_gpu else ''}")
        return 0
    if options.here:
        (name,) = options.only
        try:
            measure(name, CASES[name], options.rounds, options.to)
        except Exception as error:  # noqa: BLE001 — reported as one line
            print(f"{name}: {error_text(error)}", file=sys.stderr)
            return 1
        return 0
    chosen = options.only or list(CASES)
    runnable = [name for name in chosen if torch.cuda.is_available() or not CASES[name].needs_gpu]
    for name in chosen:
        if name not in runnable:
            print(f"{name}: needs a CUDA device")
    succeeded = [
        in_fresh_process(name, options.rounds or CASES[name].rounds, options.to)
        for name in tqdm(runnable, desc="cases", unit="case")
    ]
    return 0 if all(succeeded) else 1
