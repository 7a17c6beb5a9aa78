"""Measure steps of LAMB and LARS: trustlens', recorded or not, and those of other packages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn
from torch.optim import Optimizer

from benchmarks.common.contenders import Trustlens, Watcher, contender
from benchmarks.common.measure import Contender, compare
from benchmarks.common.models import fused_adamw, tensors
from trustlens.optim import Lamb, Lars

PACKAGES = ("torch-optimizer", "pytorch_optimizer", "timm")

Make = Callable[[list[nn.Parameter]], Optimizer]


def own_lamb(parameters: list[nn.Parameter]) -> Optimizer:
    """Return trustlens' LAMB."""
    return Lamb(parameters, lr=1e-3, weight_decay=0.01)


def own_lars(parameters: list[nn.Parameter]) -> Optimizer:
    """Return trustlens' LARS."""
    return Lars(parameters, lr=1e-3, weight_decay=0.01)


def of_torch_optimizer(parameters: list[nn.Parameter]) -> Optimizer:
    """Return torch-optimizer's LAMB."""
    import torch_optimizer  # noqa: PLC0415

    return torch_optimizer.Lamb(parameters, lr=1e-3, weight_decay=0.01)


def of_pytorch_optimizer(parameters: list[nn.Parameter]) -> Optimizer:
    """Return pytorch_optimizer's LAMB."""
    import pytorch_optimizer  # noqa: PLC0415

    return pytorch_optimizer.Lamb(parameters, lr=1e-3, weight_decay=0.01)


def of_timm(parameters: list[nn.Parameter]) -> Optimizer:
    """Return timm's LAMB without gradient clipping, which would change the gradients in place.

    The rest of timm is not imported, since it needs torchvision.
    """
    if "timm" not in sys.modules:
        home = Path(str(distribution("timm").locate_file("timm")))
        for name, place in (("timm", home), ("timm.optim", home / "optim")):
            bare: Any = ModuleType(name)
            bare.__path__ = [str(place)]
            sys.modules[name] = bare
    from timm.optim.lamb import Lamb as Timm  # noqa: PLC0415

    return Timm(parameters, lr=1e-3, weight_decay=0.01, max_grad_norm=None)


def steps(
    name: str,
    what: str,
    shapes: Sequence[tuple[int, ...]],
    make: Make,
    watcher: type[Watcher] = Watcher,
) -> Contender:
    """Return a contender whose optimizer steps bare tensors."""
    return contender(name, what, partial(tensors, shapes, make), watcher)


def measure(shapes: Sequence[tuple[int, ...]], rounds: int) -> dict[str, dict[str, Any]]:
    """Compare all with torch's fused AdamW, then trustlens' recorded with the same not recorded.

    Only the contenders of one comparison are in memory at a time.
    """
    base = steps("AdamW", "torch's, fused", shapes, fused_adamw)
    lamb = steps("Lamb", "trustlens'", shapes, own_lamb)
    lars = steps("Lars", "trustlens'", shapes, own_lars)
    others = (
        steps("torch-optimizer", "its Lamb", shapes, of_torch_optimizer),
        steps("pytorch_optimizer", "its Lamb", shapes, of_pytorch_optimizer),
        steps("timm", "its Lamb, max_grad_norm=None", shapes, of_timm),
    )
    entries = compare([base, lamb, lars], rounds=rounds)
    for other in others:
        entries[other.name] = compare([base, other], rounds=max(1, rounds // 3))[other.name]
    for one, make in ((lamb, own_lamb), (lars, own_lars)):
        recorded = steps(
            f"{one.name}, recorded", f"relative to {one.name}", shapes, make, Trustlens
        )
        entries[recorded.name] = compare([one, recorded], rounds=rounds)[recorded.name]
    return entries
