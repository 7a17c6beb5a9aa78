"""Cases that need a CUDA device."""

from __future__ import annotations

import gc
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.contenders import Trustlens, UsualLoop, contender
from benchmarks.common.measure import Step, compare
from benchmarks.common.models import Shape, Training, gpt, tensors

GPT2 = Shape(layers=12, heads=12, width=768, vocabulary=50304, batch=32, length=1024)
BILLION = [(4096, 4096)] * 60  # 1.007e9 parameters
BYTES = 16  # per parameter that the sums read: w, g, m and v in float32
MANY = (150, 3000)
MIB = 1 << 20


def until_synchronized(step: Step, turn: int) -> float:
    """Time steps until the device has finished them; synchronize only before and after."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(turn):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / turn


def on_device(step: Step, turn: int) -> float:
    """Time steps on the device, by CUDA events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(turn):
        step()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) * 1e-3 / turn


def on_host(step: Step, turn: int) -> float:
    """Time the host during steps; the device is idle at the start of each."""
    spent = 0.0
    for _ in range(turn):
        torch.cuda.synchronize()
        started = time.perf_counter()
        step()
        spent += time.perf_counter() - started
    torch.cuda.synchronize()
    return spent / turn


def gpt2(rounds: int) -> dict[str, Any]:
    """Measure GPT-2 in bfloat16 autocast."""
    make = partial(gpt, GPT2, device="cuda", autocast=True)
    contenders = [
        contender("plain", "fused AdamW", make),
        contender("usual loop", "eight norms of each tensor, .item()", make, UsualLoop),
        contender("trustlens", "every step, all sums", make, Trustlens),
        contender(
            "trustlens, histograms",
            "and element histograms, every step",
            make,
            partial(Trustlens, histograms_every=1),
        ),
    ]
    return {"contenders": compare(contenders, rounds=rounds, turn=5, clock=until_synchronized)}


def kernel(rounds: int) -> dict[str, Any]:
    """Measure the device time for the sums of 1 B parameters, relative to reading them once."""
    bandwidth = copy_bandwidth(rounds)
    make = partial(tensors, BILLION, device="cuda")
    plain = contender("plain", "fused AdamW, optimizer.step() only", make)
    ours = contender("trustlens", "every step, all sums", make, Trustlens)
    entries = compare([plain, ours], rounds=rounds, clock=on_device)
    parameters = sum(rows * columns for rows, columns in BILLION)
    reading = parameters * BYTES / bandwidth
    added = entries["trustlens"].get("added_ms")
    return {
        "contenders": entries,
        "parameters": parameters,
        "copy_gb_per_s": round(bandwidth * 1e-9, 1),
        "reading_ms": round(reading * 1e3, 4),
        "times_reading": None if added is None else round(added / (reading * 1e3), 3),
    }


def copy_bandwidth(rounds: int) -> float:
    """Return the bytes per second that a copy on the device reads and writes in total."""
    source = torch.ones(1 << 30, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    step: Step = partial(target.copy_, source)  # type: ignore[assignment]
    on_device(step, 3)
    seconds = statistics.median(on_device(step, 1) for _ in range(rounds))
    return 2 * source.nbytes / seconds


def host(rounds: int) -> dict[str, Any]:
    """Measure the host time in the hooks, for 150 and for 3,000 layers."""
    entries: dict[str, Any] = {}
    for count in MANY:
        make = partial(tensors, [(32, 32)] * count, device="cuda")
        both = [
            contender("plain", "fused AdamW, optimizer.step() only", make),
            contender("trustlens", "every step, all sums", make, Trustlens),
        ]
        found = compare(both, rounds=rounds, turn=5, clock=on_host)
        entries |= {f"{name}, {count} layers": entry for name, entry in found.items()}
    return {"contenders": entries}


def memory(rounds: int) -> dict[str, Any]:
    """Measure the memory that a recorder of 100 M parameters uses on the device and the host."""
    training = tensors([(1024, 1024)] * 100, device="cuda")
    plain = _peak(training, rounds)
    with _recording(training):
        _peak(training, 3)  # the first step copies the weights
        held_by_host = _resident()
        recorded = _peak(training, rounds)
        grown = _resident() - held_by_host
    return {
        "parameters": 100 << 20,
        "device_mib": round((recorded - plain) / MIB, 2),
        "host_grown_mib": round(grown / MIB, 1),
    }


def _peak(training: Training, steps: int) -> int:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(steps):
        training.optimizer.step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


@contextmanager
def _recording(training: Training) -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        watcher = Trustlens(training, Path(folder))
        try:
            yield
        finally:
            watcher.close()


def _resident() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * resource.getpagesize()


CASES: dict[str, Callable[[int], dict[str, Any]]] = {
    "gpu-gpt2": gpt2,
    "gpu-kernel": kernel,
    "gpu-host": host,
    "gpu-memory": memory,
}
