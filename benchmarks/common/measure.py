"""Measure the cost of a contender as its extra time relative to a baseline, interleaved.

Identical trainings run in one process. In each round every contender does a few steps; the order
is reversed after each round, so that a drift of the machine's speed affects all of them alike. The
cost is the median over the rounds of the difference from the baseline in the same round.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import trustlens

Step = Callable[[], None]
Clock = Callable[[Step, int], float]
"""Does the given number of steps and returns the mean seconds of one."""

WARM_UP = 3  # rounds


@dataclass(frozen=True)
class Running:
    """A started training: one step, and a close that returns entries for the result."""

    step: Step
    close: Callable[[], dict[str, Any]] = dict


@dataclass(frozen=True)
class Contender:
    """A training to compare: name, short description, and a function that starts it in a folder."""

    name: str
    what: str
    start: Callable[[Path], Running]
    slow: bool = False  # many times slower than the baseline: a few rounds are enough


def wall(step: Step, turn: int) -> float:
    """Time steps on the CPU."""
    started = time.perf_counter()
    for _ in range(turn):
        step()
    return (time.perf_counter() - started) / turn


def compare(
    contenders: Sequence[Contender],
    *,
    rounds: int,
    turn: int = 1,
    clock: Clock = wall,
    warm_up: int = WARM_UP,
) -> dict[str, dict[str, Any]]:
    """Measure contenders in turns; the first one is the baseline.

    Parameters
    ----------
    contenders : sequence of Contender
        If one raises, it is dropped and its entry says why. If the baseline raises, so does this.
    rounds, turn, warm_up : int
        Measured rounds, steps of each contender in a round, rounds before the measured ones.
    clock : callable
        Times a turn.

    Returns
    -------
    dict
        By name: the entries of :func:`summary` and those of ``Running.close``, or ``why`` with the
        error.
    """
    entries: dict[str, dict[str, Any]] = {each.name: {"what": each.what} for each in contenders}
    failed: dict[str, str] = {}
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        contextlib.redirect_stdout(io.StringIO()),  # some packages print
    ):
        running, threads = _start(contenders, Path(folder), failed)
        steps = {name: one.step for name, one in running.items()}
        interleave(steps, warm_up, turn, clock, failed=failed, label="warm-up")
        begun = {name: _cpu_seconds(each) for name, each in threads.items()}
        label = " · ".join(steps)
        times = interleave(steps, rounds, turn, clock, failed=failed, label=label)
        ended = {name: _cpu_seconds(each) for name, each in threads.items()}
        for name, one in running.items():
            try:
                entries[name].update(one.close())
            except Exception as error:  # noqa: BLE001 — the error of a contender is reported, not raised
                failed.setdefault(name, f"in close: {error_text(error)}")
    del running, steps
    gc.collect()  # free the memory before the next comparison
    baseline = times[contenders[0].name]
    for name, entry in entries.items():
        if name in failed:
            entry["why"] = failed[name]
            continue
        entry.update(summary(times[name], baseline))
        before, after = begun.get(name), ended.get(name)
        if before is not None and after is not None:
            entry["thread_ms"] = _ms((after - before) / (rounds * turn))
    return entries


def _start(
    contenders: Sequence[Contender], folder: Path, failed: dict[str, str]
) -> tuple[dict[str, Running], dict[str, list[threading.Thread]]]:
    """Start the contenders; return those that run, and the threads that they started."""
    running: dict[str, Running] = {}
    threads: dict[str, list[threading.Thread]] = {}
    for place, each in enumerate(contenders):
        own = folder / str(place)
        own.mkdir()
        before = set(threading.enumerate())
        try:
            running[each.name] = each.start(own)
        except Exception as error:
            if place == 0:
                raise
            failed[each.name] = error_text(error)
        if new := set(threading.enumerate()) - before:
            threads[each.name] = list(new)
    return running, threads


def interleave(
    steps: dict[str, Step],
    rounds: int,
    turn: int,
    clock: Clock,
    *,
    failed: dict[str, str],
    label: str = "",
) -> dict[str, list[float]]:
    """Run the steps in turns; return the seconds per step of each, one number per round.

    The order is reversed after each round. A contender that raises is removed from ``steps`` and
    its error added to ``failed``; an error of the first one is raised.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    baseline = order[0]
    for _ in tqdm(range(rounds), desc=label[:40], unit="round", leave=False):
        order.reverse()
        for name in list(order):
            try:
                times[name].append(clock(steps[name], turn))
            except Exception as error:
                if name == baseline:
                    raise
                failed[name] = error_text(error)
                order.remove(name)
                del steps[name]
    return times


def summary(times: Sequence[float], baseline: Sequence[float]) -> dict[str, Any]:
    """Return the median time of a step and its difference from the baseline.

    Parameters
    ----------
    times, baseline : sequence of float
        Seconds per step, one number per round.
    """
    differences = differences_of(times, baseline)
    plain = statistics.median(baseline)
    added = statistics.median(differences)
    entry: dict[str, Any] = {"rounds": len(times), "step_ms": _ms(statistics.median(times))}
    if times is baseline:
        return entry
    low, high = quartiles(differences)
    return entry | {
        "baseline_ms": _ms(plain),
        "added_ms": _ms(added),
        "added_percent": _percent(added / plain),
        "added_percent_quartiles": [_percent(low / plain), _percent(high / plain)],
    }


def differences_of(times: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Return the difference within each round."""
    return [one - other for one, other in zip(times, baseline, strict=True)]


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the first and the third quartile; for one value, that value twice."""
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def error_text(error: BaseException) -> str:
    """Return the type and the first line of the message of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def environment(rounds: int, packages: Sequence[str] = ()) -> dict[str, Any]:
    """Return the date, the machine, the versions and the number of rounds of a measurement."""
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "trustlens": trustlens.__version__,
    }
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": gpu,
        },
        "versions": versions,
        "rounds": rounds,
    }


def cpu_model() -> str:
    """Return the name of the processor, as far as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.processor()])[0]} ({platform.machine()})"


def _cpu_seconds(threads: Sequence[threading.Thread]) -> float | None:
    """Return the CPU time of threads that a contender started; None if it is not known."""
    try:
        spent = [
            Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text(encoding="ascii")
            for thread in threads
        ]
    except OSError:
        return None
    return sum(int(line.split()[0]) for line in spent) * 1e-9


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 4)


def _percent(share: float) -> float:
    return round(share * 100, 3)
