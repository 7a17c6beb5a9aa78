"""Trainings that are recorded, and what another LAMB would have applied in them, beside it.

In float64, from the state that the optimizer keeps, by the formulas of `optim.lamb_formulas`.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import support.lamb_formulas as of
import trustlens
from trustlens.optim import LAMB_VARIANTS, Lamb

BETAS, DECAY, STEPS = (of.BETA1, of.BETA2), 0.1, 6
DECAYED = ("matrix", "zero", "large", "idle")


class Adam(of.Adam):
    """The same with an ε of its own, so small that its place makes no difference."""

    eps = 1e-12

    @property
    def debiased(self):
        return (self.m / self.c1) / (np.sqrt(self.v / self.c2) + self.eps)

    @property
    def plain(self):
        return self.m / (np.sqrt(self.v) + self.eps)


def make_optimizer(own, groups, **options):
    if own == "AdamW":
        return torch.optim.AdamW(groups, lr=of.LR, betas=BETAS, **{"eps": Adam.eps, **options})
    return Lamb(groups, of.LR, BETAS, **{"eps": Adam.eps, **LAMB_VARIANTS[own], **options})


def problem(scale=0.05):
    """Weights by name and gradients by step, whose norm all together is about 9 × scale."""
    weights, grads = of.problem(steps=STEPS)
    weights["still"], weights["unused"] = np.ones(3), np.ones(2)
    for of_step in grads:
        of_step["still"], of_step["unused"] = np.zeros(3), None
    return weights, [
        {n: None if g is None else scale * g for n, g in of_step.items()} for of_step in grads
    ]


def train(path, make, grads=None, *, decay=DECAY, **recording):
    """Train and record; return what each step's ratio is made of, by (step, layer)."""
    weights, given = problem()
    grads = given if grads is None else grads
    model = torch.nn.ParameterDict(
        {n: torch.nn.Parameter(torch.tensor(w, dtype=torch.float32)) for n, w in weights.items()}
    )
    groups = [
        {"params": [model[n] for n in DECAYED], "weight_decay": decay},
        {"params": [p for n, p in model.items() if n not in DECAYED], "weight_decay": 0.0},
    ]
    made = make(groups)
    optimizers = made if isinstance(made, list) else [made]
    seen = {}
    with trustlens.record(optimizers, path, model=model, **recording):
        for step, of_step in enumerate(grads, start=1):
            before = {n: p.detach().double().numpy().copy() for n, p in model.items()}
            for name, g in of_step.items():
                model[name].grad = None if g is None else torch.tensor(g, dtype=torch.float32)
            for optimizer in optimizers:
                optimizer.step()
                for group in optimizer.param_groups:
                    seen |= states(step, model, optimizer, group, before)
                    group["lr"] *= 0.9
    return seen


def states(step, model, optimizer, group, before):
    names = {id(p): name for name, p in model.items()}
    seen = {}
    for p in group["params"]:
        state = optimizer.state.get(p, {})
        if "exp_avg_sq" in state:
            m, v = (state[key].double().numpy().copy() for key in ("exp_avg", "exp_avg_sq"))
            adam = Adam(m, v, int(state["step"]), group["lr"], group["weight_decay"])
            seen[step, names[id(p)]] = (before[names[id(p)]], adam)
    return seen


def assert_ratios(frame, seen, formula, rel=1e-5):
    assert frame.notna().sum().sum() == len(seen)
    for (step, name), (w, adam) in seen.items():
        assert frame.loc[step, name] == pytest.approx(formula(w, adam)[1], rel=rel), (step, name)
