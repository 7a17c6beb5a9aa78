"""Who looks at a training: nobody, the usual loop, trustlens. The others are in ``rivals.py``."""

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
    """Looks at each step of a training; this one does not."""

    def __init__(self, training: Training, folder: Path) -> None:
        self.training = training
        self.folder = folder

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients, and look at what is to be seen before the optimizer's step."""
        loss.backward()

    def after_step(self, loss: Tensor | None) -> None:
        """Look at what the optimizer did."""

    def close(self) -> dict[str, Any]:
        """Write what is left; return what is to be noted."""
        return {}


def contender(
    name: str,
    what: str,
    training: Callable[[], Training],
    watcher: Callable[[Training, Path], Watcher] = Watcher,
    *,
    slow: bool = False,
) -> Contender:
    """Return a training and who looks at it."""

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
    """Records every step, all sums, into files."""

    def __init__(self, training: Training, folder: Path, **options: Any) -> None:
        super().__init__(training, folder)
        self.recorder = trustlens.record(
            training.optimizer, folder / "run", model=training.model, **options
        )

    def after_step(self, loss: Tensor | None) -> None:
        """Log the loss; the hooks did the rest."""
        if loss is not None:
            self.recorder.log(loss=loss)

    def close(self) -> dict[str, Any]:
        """Seal the run; it must hold every step."""
        self.recorder.close()
        return noted(self.folder / "run")


def noted(run: Path) -> dict[str, Any]:
    """Return which sums were at work in a run, and how many steps it had to leave out.

    Raises
    ------
    RuntimeError
        The recording stopped in mid-run: what was measured is not its cost.
    """
    recorder = json.loads((run / "run.json").read_text(encoding="utf-8"))["recorder"]
    if "stopped" in recorder:
        raise RuntimeError(f"the recording stopped: {recorder['stopped']}")
    return {"sums": recorder["statistics"], "dropped": recorder.get("dropped", 0)}


class JsonLines(Watcher):
    """Writes what it reads of the tensors into lines of JSON, written through one by one."""

    def __init__(self, training: Training, folder: Path) -> None:
        super().__init__(training, folder)
        self.named = training.named()
        self.file = (folder / "log.jsonl").open("w", encoding="utf-8", buffering=1)

    def write(self, values: dict[str, Any]) -> None:
        """Write a step's line."""
        self.file.write(json.dumps(values) + "\n")

    def close(self) -> dict[str, Any]:
        """Close the file."""
        self.file.close()
        return {}


class UsualLoop(JsonLines):
    """Reads eight norms of each tensor one by one, as most packages do."""

    @torch.no_grad()
    def after_step(self, loss: Tensor | None) -> None:
        """Read them."""
        state = self.training.optimizer.state
        values: dict[str, Any] = {} if loss is None else {"loss": loss.item()}
        for name, w in self.named:
            m, v, g = state[w]["exp_avg"], state[w]["exp_avg_sq"], w.grad
            d = m / (v.sqrt() + 1e-8)
            norms = [each.norm().item() for each in (w, g, m, v, d, d + 0.01 * w)]
            values[name] = [*norms, (d * w).sum().item(), (g * m).sum().item()]
        self.write(values)
