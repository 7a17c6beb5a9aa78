"""Observers of a training: none, a loop of norms, trustlens.

Those of other packages are in ``benchmarks/overhead/rivals.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import trustlens
from benchmarks.common.measure import Contender, Running
from benchmarks.common.models import Training


class Watcher:
    """Observes each step of a training; this base class does nothing."""

    def __init__(self, training: Training, folder: Path) -> None:
        self.training = training
        self.folder = folder

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients, and observe them before the optimizer's step."""
        loss.backward()

    def after_step(self, loss: Tensor | None) -> None:
        """Observe what the optimizer did."""

    def close(self) -> dict[str, Any]:
        """Write what is left; return entries for the result."""
        return {}


def contender(
    name: str,
    what: str,
    training: Callable[[], Training],
    watcher: Callable[[Training, Path], Watcher] = Watcher,
    *,
    slow: bool = False,
) -> Contender:
    """Return a contender: a training with its observer."""

    def start(folder: Path) -> Running:
        own = training()
        watching = watcher(own, folder)

        def step() -> None:
            loss = None
            if own.loss is not None:
                own.optimizer.zero_grad()
                loss = own.loss()
                watching.backward(loss)
            own.optimizer.step()
            watching.after_step(loss)

        return Running(step, watching.close)

    return Contender(name, what, start, slow)


class Trustlens(Watcher):
    """trustlens, which records all sums of every step to files."""

    def __init__(self, training: Training, folder: Path, **options: Any) -> None:
        super().__init__(training, folder)
        self.recorder = trustlens.record(
            training.optimizer, folder / "run", model=training.model, **options
        )

    def after_step(self, loss: Tensor | None) -> None:
        """Log the loss. The hooks have recorded the step."""
        if loss is not None:
            self.recorder.log(loss=loss)

    def close(self) -> dict[str, Any]:
        """Close the run; return its backend and how many steps it dropped."""
        self.recorder.close()
        return backend_and_drops(self.folder / "run")


def backend_and_drops(run: Path) -> dict[str, Any]:
    """Return the backend that computed a run's sums, and how many steps were dropped.

    Raises
    ------
    RuntimeError
        If the recording stopped before the end: its cost was not measured.
    """
    recorder = json.loads((run / "run.json").read_text(encoding="utf-8"))["recorder"]
    if "stopped" in recorder:
        raise RuntimeError(f"the recording stopped: {recorder['stopped']}")
    return {"sums": recorder["statistics"], "dropped": recorder.get("dropped", 0)}


class JsonLines(Watcher):
    """Writes values of the tensors as lines of JSON, flushed after each line."""

    def __init__(self, training: Training, folder: Path) -> None:
        super().__init__(training, folder)
        self.named = training.named()
        self.file = (folder / "log.jsonl").open("w", encoding="utf-8", buffering=1)

    def write(self, values: dict[str, Any]) -> None:
        """Write the line of a step."""
        self.file.write(json.dumps(values) + "\n")

    def close(self) -> dict[str, Any]:
        """Close the file."""
        self.file.close()
        return {}


class UsualLoop(JsonLines):
    """Reads eight norms and products of each tensor one by one, as most packages do."""

    @torch.no_grad()
    def after_step(self, loss: Tensor | None) -> None:
        """Compute, read and write them."""
        state = self.training.optimizer.state
        values: dict[str, Any] = {} if loss is None else {"loss": loss.item()}
        for name, w in self.named:
            m, v, g = state[w]["exp_avg"], state[w]["exp_avg_sq"], w.grad
            d = m / (v.sqrt() + 1e-8)
            norms = [each.norm().item() for each in (w, g, m, v, d, d + 0.01 * w)]
            values[name] = [*norms, (d * w).sum().item(), (g * m).sum().item()]
        self.write(values)
