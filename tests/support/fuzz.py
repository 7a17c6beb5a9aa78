"""Fuzzing of the readers: change a random file of a run, and call all readers.

python fuzz.py DIRECTORY FIRST COUNT    tries the seeds from FIRST; prints each failure, that is,
                                        any exception other than a TrustlensError
"""

from __future__ import annotations

import json
import logging
import random
import resource
import shutil
import struct
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import pyarrow as pa

import trustlens
from tests.support import runs
from trustlens.errors import TrustlensError
from trustlens.store.arrow import dictionary
from trustlens.store.layout import SCHEMAS
from trustlens.store.reader import fingerprint
from trustlens.store.writer import RunWriter

MEMORY = 3 << 30  # maximum address space of the process, in bytes

LAYERS = ["a.weight", "a.bias", "b.weight"]


def histograms(steps: np.ndarray) -> pa.Table:
    rows = [[(int(bucket), int(step)) for bucket in range(5)] for step in steps]
    return pa.table(
        {
            "step": pa.array(steps, pa.int64()),
            "layer": dictionary(np.zeros(len(steps), np.int32), LAYERS),
            "quantity": dictionary(np.zeros(len(steps), np.int32), ["weight"]),
            "counts": pa.array(rows, SCHEMAS["histograms"].field("counts").type),
        },
        schema=SCHEMAS["histograms"],
    )


def make_interrupted_run(directory: Path) -> None:
    """Write a run as if its process died: every table has segments and a journal."""
    writer = RunWriter(directory, runs.run_info(layers=LAYERS), segment_rows=60)
    values = runs.synthetic_values(120, len(LAYERS))
    for begin in range(0, 110, 10):
        steps = np.arange(begin + 1, begin + 11)
        rows = {name: each[begin : begin + 10] for name, each in values.items()}
        writer.append("layers", runs.layers_table(steps, LAYERS, rows))
        writer.append("steps", runs.steps_table(steps))
        writer.append("metrics", runs.metrics_table(steps, {"loss": 1.0 / steps, "λ": steps}))
        writer.append("histograms", histograms(steps))
    writer.flush()


def readers(run: trustlens.Run) -> list[Callable[[], Any]]:
    return [
        lambda: run.status,
        run.missing,
        lambda: run.last_step,
        lambda: run.label,
        lambda: repr(run),
        lambda: fingerprint(run.path),
        lambda: run.sample(["grad_norm"], 3),
        run.layers,
        lambda: run.layers(["update_rms"], layers=["a.bias"], steps=[3, 70]),
        lambda: run.matrix("trust_ratio", steps=slice(20, 40)),
        lambda: run.downsample("update_ratio", 3),
        run.metrics,
        run.steps,
        lambda: run.histograms("a.weight", "weight"),
    ]


def changed(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Return the content of a file with a random change."""
    result = bytearray(data)
    kind = rng.randrange(7)
    at = rng.randrange(len(result))
    if kind == 0:  # some bytes
        for _ in range(rng.choice([1, 1, 2, 5, 20])):
            result[rng.randrange(len(result))] = rng.randrange(256)
    elif kind == 1:  # one bit
        result[at] ^= 1 << rng.randrange(8)
    elif kind == 2:  # cut
        del result[at:]
    elif kind == 3:  # an extreme number
        number = rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1])
        result[at : at + 8] = struct.pack("<Q", number)[: len(result[at : at + 8])]
    elif kind == 4:  # near the end, where a footer has its lengths
        result[max(0, len(result) - 1 - rng.randrange(200))] = rng.randrange(256)
    elif kind == 5:  # a piece of another file
        length = rng.randrange(1, 200)
        begin = rng.randrange(len(other))
        result[at : at + length] = other[begin : begin + length]
    else:  # something in between
        result[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 40)))
    return bytes(result)


VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 10**400, 1e308, float("nan"), float("inf"), "", "x", "\ud800",
    "../../etc/passwd", [], {}, [[]], [{}], {"a": 1}, [None] * 3, [1, "2"], "9" * 5000,
)  # fmt: skip


def changed_json(data: bytes, rng: random.Random) -> bytes:
    """Return a run.json in which random values are replaced or removed."""
    content = json.loads(data)
    for _ in range(rng.choice([1, 1, 1, 3])):
        container, key = content, rng.choice(list(content))
        while True:
            inner = container[key]
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner))) if (
                isinstance(inner, list)
            ) else []  # fmt: skip
            if not keys or rng.random() < 0.3:
                break
            container, key = inner, rng.choice(keys)
        if rng.random() < 0.2 and isinstance(container, dict) and len(container) > 1:
            del container[key]
        else:
            container[key] = rng.choice(VALUES)
    if rng.random() < 0.02:
        return b'{"schema_version": 1, "name": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    return json.dumps(content).encode()


def attempt(directory: Path) -> str | None:
    """Call all readers; return the traceback of an unexpected error, if any."""
    try:
        run = trustlens.Run(directory)
    except TrustlensError:
        return None
    except BaseException:  # noqa: BLE001 — every error is reported
        return traceback.format_exc()
    for read in readers(run):
        try:
            read()
        except TrustlensError:
            pass
        except BaseException:  # noqa: BLE001 — every error is reported
            return traceback.format_exc()
    return None


def fuzz(directory: Path, first: int, count: int) -> int:
    shutil.rmtree(directory, ignore_errors=True)
    make_interrupted_run(directory)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    files = sorted(path for path in directory.rglob("*") if path.suffix)
    originals = {path: path.read_bytes() for path in files}
    failures = 0
    for seed in range(first, first + count):
        rng = random.Random(seed)  # noqa: S311
        path = rng.choice(files)
        if path.name == "run.json" and rng.random() < 0.8:
            data = changed_json(originals[path], rng)
        else:
            data = changed(originals[path], originals[rng.choice(files)], rng)
        path.write_bytes(data)
        found = attempt(directory)
        if found is not None:
            failures += 1
            sys.stdout.write(f"seed {seed}: {path.relative_to(directory)}\n{found}\n")
        path.write_bytes(originals[path])
    return failures


if __name__ == "__main__":
    logging.disable()
    sys.exit(min(fuzz(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])), 1))
