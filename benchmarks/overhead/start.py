"""Measure the cost of recording outside of the steps: import, ``record()`` and ``close()``."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

import trustlens
from benchmarks.common.contenders import backend_and_drops
from benchmarks.common.models import tensors
from benchmarks.common.results import REPOSITORY

SMALL = [(32, 32)] * 150
LONG = 20_000  # steps
FEW = [(8,)] * 50

# Run in a fresh process. A training has already imported torch and created an optimizer, which
# imports much more of torch.
_IMPORT = """
import json, time
import torch
torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])
start = time.perf_counter()
import trustlens
imported = time.perf_counter()
trustlens.record
print(json.dumps([imported - start, time.perf_counter() - imported]))
"""

_RECORD = """
import json, sys, tempfile, time
import trustlens
from benchmarks.common.models import tensors
trustlens.record
training = tensors({shapes!r})
training.optimizer.step()
with tempfile.TemporaryDirectory() as folder:
    start = time.perf_counter()
    recorder = trustlens.record(training.optimizer, folder + "/run")
    made = time.perf_counter()
    training.optimizer.step()
    stepped = time.perf_counter()
    recorder.close()
print(json.dumps([made - start, stepped - made]))
"""


def measure(rounds: int) -> dict[str, Any]:
    """Return times in milliseconds, each the median over fresh processes."""
    with tempfile.TemporaryDirectory() as compiled:
        own = {"PYTHONPYCACHEPREFIX": compiled, "PYTHONDONTWRITEBYTECODE": ""}
        _fresh(_IMPORT, own)  # compiles the bytecode, as an installation does
        turns = tqdm(range(rounds), desc="import", leave=False)
        imports = [_fresh(_IMPORT, own) for _ in turns]
    code = _RECORD.format(shapes=SMALL)
    builds: list[list[float]] = []
    cached: list[list[float]] = []
    for _ in tqdm(range(rounds), desc="record", leave=False):
        with tempfile.TemporaryDirectory() as cache:  # still empty
            own = {"XDG_CACHE_HOME": cache}
            builds.append(_fresh(code, own))
            cached.append(_fresh(code, own))
    return {
        "import_ms": _median([one[0] for one in imports]),
        "import_record_ms": _median([sum(one) for one in imports]),
        "record_ms": _median([one[0] for one in cached]),
        "first_step_ms": _median([one[1] for one in cached]),
        "record_building_ms": _median([one[0] for one in builds]),
        **close_after(LONG),
    }


def close_after(steps: int) -> dict[str, Any]:
    """Return the time of ``close()`` after steps that were recorded as fast as possible.

    Parameters
    ----------
    steps : int
        Number of steps, of 50 small layers each.
    """
    training = tensors(FEW)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        recorder = trustlens.record(training.optimizer, run)
        started = time.perf_counter()
        for _ in tqdm(range(steps), desc="close", unit="step", leave=False):
            training.optimizer.step()
        stepped = time.perf_counter()
        recorder.close()
        ended = time.perf_counter()
        rest = backend_and_drops(run)
    return {
        "close_ms": round((ended - stepped) * 1e3, 1),
        "steps": steps,
        "layers": len(FEW),
        "fed_s": round(stepped - started, 2),
        **rest,
    }


def _fresh(code: str, environment: Mapping[str, str] | None = None) -> list[float]:
    paths = [
        str(Path(trustlens.__file__).parents[1]),
        str(REPOSITORY),
        *os.environ.get("PYTHONPATH", "").split(os.pathsep),
    ]
    own = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), **(environment or {})}
    done = subprocess.run(  # noqa: S603 — this Python, this code
        [sys.executable, "-c", code],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"a fresh process ended with {done.returncode}: {done.stderr[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _median(seconds: list[float]) -> float:
    return round(statistics.median(seconds) * 1e3, 2)
