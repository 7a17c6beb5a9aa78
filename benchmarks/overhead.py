"""What recording adds to a training step, as a share of it.

    python benchmarks/overhead.py             prints a table and writes benchmarks/results/
    python benchmarks/overhead.py --portable  the same as on a machine without a C compiler

Plain and recorded steps of two equal models alternate in one process, in an order that turns
around each time, so that a machine whose speed drifts slows both. What is shown is the median of
the differences within a round, as a share of the median plain step. The usual
way, a loop that reads eight norms of each tensor with ``.item()``, is measured beside.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

import trustlens

sys.path.insert(0, str(Path(__file__).parents[1] / "sample_runs"))
from experiments import Network

ROUNDS = 250
BATCH = 512
RESULTS = Path(__file__).with_name("results")

Step = Callable[[], float]


def make_step(after: Callable[[nn.Module, torch.optim.Optimizer], None] | None = None) -> Step:
    """Return a function that does one training step and returns its seconds."""
    torch.manual_seed(0)
    model = Network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    images, labels = torch.randn(BATCH, 1, 28, 28), torch.randint(10, (BATCH,))

    def step() -> float:
        started = time.perf_counter()
        optimizer.zero_grad()
        functional.nll_loss(model(images), labels).backward()
        optimizer.step()
        if after is not None:
            after(model, optimizer)
        return time.perf_counter() - started

    step.model, step.optimizer = model, optimizer  # type: ignore[attr-defined]
    return step


def usual_loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Read norms of each tensor one by one, as most packages do."""
    with torch.no_grad():
        for parameter in model.parameters():
            state = optimizer.state[parameter]
            m, v, g = state["exp_avg"], state["exp_avg_sq"], parameter.grad
            d = m / (v.sqrt() + 1e-8)
            for values in (parameter, g, m, v, d, d + 0.01 * parameter):
                values.norm().item()
            (d * parameter).sum().item()
            (g * m).sum().item()


def added(times: list[float], plain: list[float]) -> float:
    """Return the median of what a step took longer than the plain one beside it, as a share."""
    differences = [one - other for one, other in zip(times, plain, strict=True)]
    return statistics.median(differences) / statistics.median(plain)


def main() -> None:
    """Measure and print."""
    if "--portable" in sys.argv[1:]:
        os.environ["CC"] = "false"  # a compiler that never succeeds
    plain, looped, recorded = make_step(), make_step(usual_loop), make_step()
    times: dict[str, list[float]] = {"plain": [], "usual loop": [], "recorded": []}
    with tempfile.TemporaryDirectory() as folder:
        recorder = trustlens.record(recorded.optimizer, Path(folder) / "run", model=recorded.model)
        order = [("plain", plain), ("usual loop", looped), ("recorded", recorded)]
        for _ in range(3):
            for _, step in order:
                step()
        for _ in tqdm(range(ROUNDS), unit="round"):
            order.reverse()
            for name, step in order:
                times[name].append(step())
        recorder.close()
        statistics_used = trustlens.open_run(Path(folder) / "run").info.recorder["statistics"]
    medians = {name: statistics.median(values) for name, values in times.items()}
    result = {
        "what": f"MNIST CNN, batch {BATCH}, fused AdamW, every step, all sums, writing included",
        "statistics": statistics_used,
        "median_step_ms": {name: round(value * 1e3, 3) for name, value in medians.items()},
        "added_percent": {
            name: round(added(times[name], times["plain"]) * 100, 2)
            for name in times
            if name != "plain"
        },
        "rounds": ROUNDS,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, CPU",
        "versions": {"torch": torch.__version__, "trustlens": trustlens.__version__},
    }
    print(json.dumps(result, indent=2))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"overhead-{statistics_used}.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
