"""Equal trainings step in turns in one process; what one takes longer is its cost.

A round gives each contender one turn of a few steps, and the next round goes the other way round,
so that a machine whose speed drifts slows all of them. The cost is the median, over the rounds,
of the difference to the baseline's turn in the same round.
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
"""Does that many steps and returns the seconds of one."""

WARM_UP = 3  # rounds


@dataclass(frozen=True)
class Running:
    """A training under way: its step, and an end that returns what is to be noted of it."""

    step: Step
    close: Callable[[], dict[str, Any]] = dict


@dataclass(frozen=True)
class Contender:
    """What is compared: a name, what it does in a few words, and how it starts in a folder."""

    name: str
    what: str
    start: Callable[[Path], Running]
    slow: bool = False  # many times the baseline: a few rounds show it


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
    """Measure contenders beside each other; the first is the baseline.

    Parameters
    ----------
    contenders : sequence of Contender
        One that raises is left out, and its entry says why; the baseline must not.
    rounds, turn, warm_up : int
        Rounds that count, steps of each contender in a round, rounds before that.
    clock : callable
        Times a turn.

    Returns
    -------
    dict
        By name: the entries of :func:`summary` with what each noted, or ``why`` there are none.
    """
    entries: dict[str, dict[str, Any]] = {each.name: {"what": each.what} for each in contenders}
    failed: dict[str, str] = {}
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        contextlib.redirect_stdout(io.StringIO()),  # some packages talk
    ):
        running, threads = _started(contenders, Path(folder), failed)
        steps = {name: one.step for name, one in running.items()}
        interleave(steps, warm_up, turn, clock, failed=failed, label="warm-up")
        begun = {name: _cpu_seconds(each) for name, each in threads.items()}
        label = " · ".join(steps)
        times = interleave(steps, rounds, turn, clock, failed=failed, label=label)
        ended = {name: _cpu_seconds(each) for name, each in threads.items()}
        for name, one in running.items():
            try:
                entries[name].update(one.close())
            except Exception as error:  # noqa: BLE001 — a rival's error is told, not raised
                failed.setdefault(name, f"at its end: {in_words(error)}")
    del running, steps
    gc.collect()  # the next ones find the memory free
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


def _started(
    contenders: Sequence[Contender], folder: Path, failed: dict[str, str]
) -> tuple[dict[str, Running], dict[str, list[threading.Thread]]]:
    """Start them; return those that run, and the threads that some of them started."""
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
            failed[each.name] = in_words(error)
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
    """Have them step in turns; return each one's seconds a step, one number a round.

    The order turns around after each round. Who raises is taken out of ``steps`` and told in
    ``failed``; the first must not raise.
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
                failed[name] = in_words(error)
                order.remove(name)
                del steps[name]
    return times


def summary(times: Sequence[float], baseline: Sequence[float]) -> dict[str, Any]:
    """Return the median step, and what it takes longer than the baseline's beside it.

    Parameters
    ----------
    times, baseline : sequence of float
        Seconds a step, one number a round.
    """
    differences = paired(times, baseline)
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


def paired(times: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Return the differences within each round."""
    return [one - other for one, other in zip(times, baseline, strict=True)]


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the first and the third quartile; of one value, that value twice."""
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def in_words(error: BaseException) -> str:
    """Return an error's type and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def described(rounds: int, packages: Sequence[str] = ()) -> dict[str, Any]:
    """Return where and when a measurement was made, and with which versions."""
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
    """Return the processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.processor()])[0]} ({platform.machine()})"


def _cpu_seconds(threads: Sequence[threading.Thread]) -> float | None:
    """Return the CPU time of threads that a contender started; None if the system tells none."""
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
