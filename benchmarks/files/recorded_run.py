"""The run whose files are measured: recorded once from a training, kept, and used again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

import trustlens
from benchmarks.common.contenders import noted
from trustlens.errors import RunError

LAYERS = 300
PEAK = 3e-3  # learning rate
SEED = 0
CATCH_UP = 2048
"""Steps after which the training waits for the writer: with next to no model it is far quicker than
any other, and what the writer has no room for would be left out."""


class Quadratics(nn.Module):
    """Layers of 4 to 16 weights, each weight with a noisy quadratic loss of its own.

    Curvatures and noise spread over two orders of magnitude. Weights and gradients are views of
    one tensor each, so that all gradients are made by three operations.
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
        """Make the gradients: of the loss, and noise, as a batch has it."""
        torch.sub(self.weights, self.target, out=self.slope).mul_(self.curvature)
        self.slope.addcmul_(self.noise.normal_(generator=self.draw), self.spread)


def rate(step: int, steps: int) -> float:
    """Return the learning rate: a hundredth of the run to warm up, then half a cosine."""
    warm = max(1, steps // 100)
    if step < warm:
        return PEAK * (step + 1) / warm
    return PEAK * (0.01 + 0.495 * (1 + math.cos(math.pi * (step - warm) / (steps - warm))))


def recorded(run: Path, steps: int, **options: Any) -> Path:
    """Return a run of so many steps: the one that lies there, else one that is recorded now.

    Parameters
    ----------
    run : Path
        Where it lies or will lie.
    steps : int
        Of the training, all of which are recorded.
    **options
        Options of ``trustlens.record``.

    Raises
    ------
    RuntimeError
        What lies there is another run, or has no end; or steps had to be left out.
    """
    config = {"steps": steps, "layers": LAYERS, "seed": SEED, **options}
    if run.exists():
        if not _is_that(run, config):
            raise RuntimeError(f"'{run}' is not the run that is to be measured: remove it first")
        return run
    torch.set_num_threads(1)  # the writer has the other core
    model = Quadratics(LAYERS)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, weight_decay=0.01)
    with trustlens.record(optimizer, run, model=model, config=config, **options) as recorder:
        for step in tqdm(range(steps), desc=f"recording {run.name}", unit="step"):
            model.backward()
            optimizer.param_groups[0]["lr"] = rate(step, steps)
            optimizer.step()
            if step % CATCH_UP == 0:
                recorder.flush()
    if noted(run)["dropped"]:
        raise RuntimeError(f"steps had to be left out of '{run}': remove it and record it anew")
    return run


def _is_that(run: Path, config: dict[str, Any]) -> bool:
    try:
        info = trustlens.open_run(run).info
    except RunError:
        return False
    return info.closed is not None and dict(info.config) == config and not noted(run)["dropped"]
