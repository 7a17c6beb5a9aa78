"""`diagnose` finds faults in a real training in the right layer, at the right step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import trustlens
from trustlens.optim import Lamb

STEPS, FAULT = 110, 81
LAYER = "3.weight"

Fault = Callable[[nn.Parameter, torch.optim.Optimizer, int], None]


def gradient_times_100(p: nn.Parameter, _: torch.optim.Optimizer, __: int) -> None:
    assert p.grad is not None
    p.grad *= 100


def zero_gradient(p: nn.Parameter, _: torch.optim.Optimizer, __: int) -> None:
    assert p.grad is not None
    p.grad.zero_()


def one_nan(p: nn.Parameter, _: torch.optim.Optimizer, step: int) -> None:
    if step == FAULT:
        assert p.grad is not None
        p.grad.view(-1)[0] = torch.nan


def weights_times_10(p: nn.Parameter, _: torch.optim.Optimizer, step: int) -> None:
    if step == FAULT:
        with torch.no_grad():
            p *= 10


def learning_rate_times_50(_: nn.Parameter, optimizer: torch.optim.Optimizer, __: int) -> None:
    optimizer.param_groups[1]["lr"] = 50 * optimizer.param_groups[0]["lr"]


OPTIMIZERS = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=2e-3),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.03, momentum=0.9),
    "lamb": lambda groups: Lamb(groups, lr=0.01, weight_decay=0.01),
}


def train(path: Path, optimizer_name: str, fault: Fault | None) -> trustlens.Run:
    """Fit the outputs of a random teacher, with a fault in one layer from step 81 on."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(20, 32), nn.LayerNorm(32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(),
        nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 5),
    )  # fmt: skip
    teacher = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 5))
    layers = dict(model.named_parameters())
    chosen = layers.pop(LAYER)
    groups = [{"params": list(layers.values())}, {"params": [chosen]}]
    optimizer = OPTIMIZERS[optimizer_name](groups)
    with trustlens.record(optimizer, path, model=model):
        for step in range(1, STEPS + 1):
            for group in optimizer.param_groups:  # a warm-up, then a slow descent
                group["lr"] = optimizer.defaults["lr"] * min(1, step / 20) * (1 - step / 200)
            x = torch.randn(32, 20)
            loss = (model(x) - teacher(x).detach()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            if fault is not None and step >= FAULT:
                fault(chosen, optimizer, step)
            optimizer.step()
    return trustlens.open_run(path)


@pytest.mark.parametrize(
    ("optimizer", "fault", "kind"),
    [
        *((name, weights_times_10, "exploding") for name in OPTIMIZERS),
        *((name, learning_rate_times_50, "exploding") for name in OPTIMIZERS),
        *((name, zero_gradient, "frozen") for name in OPTIMIZERS),
        *((name, one_nan, "not finite") for name in OPTIMIZERS),
        # With Adam and LAMB the update is only three times as long, below the threshold here.
        ("sgd", gradient_times_100, "exploding"),
    ],
)
def test_a_fault_is_found(tmp_path: Path, optimizer: str, fault: Fault, kind: str) -> None:
    findings = train(tmp_path / "run", optimizer, fault).diagnose()
    first = findings.iloc[0]
    assert (first["layer"], first["step"], first["kind"]) == (LAYER, FAULT, kind)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_findings_without_a_fault(tmp_path: Path, optimizer: str) -> None:
    findings = train(tmp_path / "run", optimizer, None).diagnose()
    assert findings.empty, findings.to_string()
