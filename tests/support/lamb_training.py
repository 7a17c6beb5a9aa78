"""Recorded trainings, and the ratios that other LAMB variants would have applied in them.

The ratios are computed in float64 from the optimizer's state by the formulas of `lamb_formulas`.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tests.support.lamb_formulas as formulas
import trustlens
from trustlens.optim import LAMB_VARIANTS, Lamb

BETAS, DECAY, STEPS = (formulas.BETA1, formulas.BETA2), 0.1, 6
DECAYED = ("matrix", "zero", "large", "idle")


class Adam(formulas.Adam):
    """`lamb_formulas.Adam` with an ε so small that its position in the formula does not matter."""

    eps = 1e-12

    @property
    def debiased(self):
        return (self.m / self.c1) / (np.sqrt(self.v / self.c2) + self.eps)

    @property
    def plain(self):
        return self.m / (np.sqrt(self.v) + self.eps)


def make_optimizer(variant, groups, **options):
    if variant == "AdamW":
        return torch.optim.AdamW(
            groups, lr=formulas.LR, betas=BETAS, **{"eps": Adam.eps, **options}
        )
    return Lamb(
        groups, formulas.LR, BETAS, **{"eps": Adam.eps, **LAMB_VARIANTS[variant], **options}
    )


def problem(scale=0.05):
    """Return weights, and gradients of each step, by name.

    The norm of a step's gradients together is about 9 · scale.
    """
    weights, grads = formulas.problem(steps=STEPS)
    weights["still"], weights["unused"] = np.ones(3), np.ones(2)
    for step_grads in grads:
        step_grads["still"], step_grads["unused"] = np.zeros(3), None
    return weights, [
        {n: None if g is None else scale * g for n, g in step_grads.items()} for step_grads in grads
    ]


def train(path, make, grads=None, *, decay=DECAY, **recording):
    """Train and record; return weights before the step and `Adam` state, by (step, layer)."""
    weights, given = problem()
    grads = given if grads is None else grads
    model = torch.nn.ParameterDict(
        {n: torch.nn.Parameter(torch.tensor(w, dtype=torch.float32)) for n, w in weights.items()}
    )
    groups = [
        {"params": [model[n] for n in DECAYED], "weight_decay": decay},
        {"params": [p for n, p in model.items() if n not in DECAYED], "weight_decay": 0.0},
    ]
    result = make(groups)
    optimizers = result if isinstance(result, list) else [result]
    seen = {}
    with trustlens.record(optimizers, path, model=model, **recording):
        for step, step_grads in enumerate(grads, start=1):
            before = {n: p.detach().double().numpy().copy() for n, p in model.items()}
            for name, g in step_grads.items():
                model[name].grad = None if g is None else torch.tensor(g, dtype=torch.float32)
            for optimizer in optimizers:
                optimizer.step()
                for group in optimizer.param_groups:
                    seen |= states(step, model, optimizer, group, before)
                    group["lr"] *= 0.9
    return seen


def states(step, model, optimizer, group, before):
    """Return weights before the step and `Adam` state of a group's layers, by (step, layer)."""
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
    """Assert that a frame of ratios by step and layer agrees with a formula."""
    assert frame.notna().sum().sum() == len(seen)
    for (step, name), (w, adam) in seen.items():
        assert frame.loc[step, name] == pytest.approx(formula(w, adam)[1], rel=rel), (step, name)
