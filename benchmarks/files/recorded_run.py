"""The run whose files are measured: recorded once from a training and then reused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

import trustlens
from benchmarks.common.contenders import backend_and_drops
from trustlens.errors import RunError

LAYERS = 300
PEAK = 3e-3  # learning rate
SEED = 0
CATCH_UP = 2048
"""Steps after which the training waits for the writer thread. With such a small model it would be
too fast for the writer, and steps would be dropped."""


class Quadratics(nn.Module):
    """Layers of 4 to 16 weights, each weight with a noisy quadratic loss of its own.

    Curvatures and noise cover two orders of magnitude. Weights and gradients are views of one
    tensor each, so that three operations compute all gradients.
    """

    def __init__(self, layers: int) -> None:
        super().__init__()
        sizes = [4 + place * 7 % 13 for place in range(layers)]
        draw = torch.Generator().manual_seed(SEED)
        total = sum(sizes)
        self.weights, self.target = torch.randn(2, total, generator=draw).unbind()
        self.curvature, self.spread = torch.randn(2, total, generator=draw).exp().unbind()
        self.noise, self.slope = torch.empty(2, total).unbind()
        self.draw = draw
        self.layers = nn.ParameterList()
        for weights, slope in zip(self.weights.split(sizes), self.slope.split(sizes), strict=True):
            parameter = nn.Parameter(weights)
            parameter.grad = slope
            self.layers.append(parameter)

    @torch.no_grad()
    def backward(self) -> None:
        """Compute the gradients of the loss, plus noise like that of a batch."""
        torch.sub(self.weights, self.target, out=self.slope).mul_(self.curvature)
        self.slope.addcmul_(self.noise.normal_(generator=self.draw), self.spread)


def rate(step: int, steps: int) -> float:
    """Return the learning rate: warm-up over the first hundredth of the run, then a half cosine."""
    warm = max(1, steps // 100)
    if step < warm:
        return PEAK * (step + 1) / warm
    return PEAK * (0.01 + 0.495 * (1 + math.cos(math.pi * (step - warm) / (steps - warm))))


def recorded(run: Path, steps: int, **options: Any) -> Path:
    """Return the path of a run with this number of steps; record it if it does not exist.

    Parameters
    ----------
    run : Path
        The directory of the run.
    steps : int
        Steps of the training; all are recorded.
    **options
        Options of ``trustlens.record``.

    Raises
    ------
    RuntimeError
        If the directory holds another run or one that was not closed, or if steps were dropped.
    """
    config = {"steps": steps, "layers": LAYERS, "seed": SEED, **options}
    if run.exists():
        if not _is_complete(run, config):
            raise RuntimeError(f"'{run}' is not the run to be measured; remove it first")
        return run
    torch.set_num_threads(1)  # the writer thread uses the other core
    model = Quadratics(LAYERS)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, weight_decay=0.01)
    with trustlens.record(optimizer, run, model=model, config=config, **options) as recorder:
        for step in tqdm(range(steps), desc=f"recording {run.name}", unit="step"):
            model.backward()
            optimizer.param_groups[0]["lr"] = rate(step, steps)
            optimizer.step()
            if step % CATCH_UP == 0:
                recorder.flush()
    if backend_and_drops(run)["dropped"]:
        raise RuntimeError(f"steps of '{run}' were dropped; remove it and record it again")
    return run


def _is_complete(run: Path, config: dict[str, Any]) -> bool:
    try:
        info = trustlens.open_run(run).info
    except RunError:
        return False
    return (
        info.closed is not None
        and dict(info.config) == config
        and not backend_and_drops(run)["dropped"]
    )
