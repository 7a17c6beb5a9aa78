"""A float64 simulation of every known optimizer, which shares no code with the recorder.

It receives copies of a layer's weights and gradient before each step, and computes the moving
averages itself, in float64 from the first step on. The recorder reads the optimizer's float32
state, so the two agree only up to float32's rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import trustlens
from trustlens.optim import LAMB_VARIANTS, LARS_VARIANTS, Lamb, Lars
from trustlens.schema import COUNTS, RECORDED

TOLERANCE = 2e-5  # the largest relative error that the documentation allows


def norm(x):
    return float(np.sqrt((x * x).sum()))


def over(above, below):
    """Return above / below, or 1 if one of them is 0."""
    return above / below if above != 0 and below != 0 else 1.0


# Each class simulates one layer of an optimizer family. `step` takes w, g, η and λ and returns the
# direction d, the decoupled decay λ, m, v̂, the debias factors, the ratio that was applied (None if
# the family applies none) and the change of the weights.


@dataclass
class Stepped:
    d: np.ndarray
    lam: float
    change: np.ndarray
    m: np.ndarray | None = None
    v_hat: np.ndarray | None = None
    debias1: float | None = None
    debias2: float | None = None
    ratio: float | None = None


@dataclass
class AdamLayer:
    """Kingma and Ba 2015; decoupled decay of Loshchilov and Hutter 2019; AMSGrad of Reddi 2018."""

    decoupled: bool
    amsgrad: bool = False
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    t: int = 0
    m: Any = 0.0
    v: Any = 0.0
    largest: Any = 0.0

    def step(self, w, g, lr, lam):
        if not self.decoupled:
            g = g + lam * w
        self.t += 1
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g * g
        self.largest = np.maximum(self.largest, self.v)
        f1, f2 = 1 / (1 - self.beta1**self.t), 1 / (1 - self.beta2**self.t)
        v_hat = f2 * (self.largest if self.amsgrad else self.v)
        d = f1 * self.m / (np.sqrt(v_hat) + self.eps)
        decay = lam if self.decoupled else 0.0
        return Stepped(d, decay, -lr * (d + decay * w), self.m, v_hat, f1, f2)


@dataclass
class SgdLayer:
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    b: np.ndarray | None = None

    def step(self, w, g, lr, lam):
        g = g + lam * w
        if self.momentum == 0:
            return Stepped(g, 0.0, -lr * g)
        if self.b is None:
            self.b = g
        else:
            self.b = self.momentum * self.b + (1 - self.dampening) * g
        d = g + self.momentum * self.b if self.nesterov else self.b
        return Stepped(d, 0.0, -lr * d, m=self.b, debias1=1.0)


@dataclass
class LambLayer:
    """LAMB, with `variant` computing the ratio and the change of the weights."""

    variant: Callable[..., tuple[float, np.ndarray]]
    debiased: bool  # whether d uses m̂ and v̂, as in the article
    factors: tuple[bool, bool]  # which of the two debias factors are applied
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-6
    t: int = 0
    m: Any = 0.0
    v: Any = 0.0

    def step(self, w, g, lr, lam):
        self.t += 1
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g * g
        f1, f2 = 1 / (1 - self.beta1**self.t), 1 / (1 - self.beta2**self.t)
        v_hat = f2 * self.v if self.debiased else self.v
        d = (f1 if self.debiased else 1.0) * self.m / (np.sqrt(v_hat) + self.eps)
        ratio, change = self.variant(w, d, lr, lam, (f1, f2))
        shown = [f if used else 1.0 for f, used in zip((f1, f2), self.factors, strict=True)]
        return Stepped(d, lam, change, self.m, v_hat, *shown, ratio)


@dataclass
class LarsLayer:
    ratio: Callable[..., float]
    momentum: float
    b: Any = 0.0

    def step(self, w, g, lr, lam):
        r = self.ratio(w, g, lam)
        self.b = self.momentum * self.b + r * (g + lam * w)
        shown = {"m": self.b, "debias1": 1.0} if self.momentum else {}
        return Stepped(g, lam, -lr * self.b, ratio=r, **shown)


def lamb_article(w, d, lr, lam, *_):
    u = d + lam * w
    r = min(over(norm(w), norm(u)), 10.0)
    return r, -lr * r * u


def lamb_pytorch(w, d, lr, lam, *_):
    u = d + lam * w
    r = over(min(norm(w), 10.0), norm(u))
    return r, -lr * r * u


def lamb_deepspeed(w, d, lr, lam, factors):
    u = d + lam * w
    r = max(lamb_article(w, d, lr, lam)[0], 0.01)
    return r, -lr * factors[0] / np.sqrt(factors[1]) * r * u


def lamb_kozistr(w, d, lr, lam, factors):
    kept = w - lr * lam * w
    r1, r2 = min(norm(kept), 10.0), norm(d)
    r = r1 / (r2 + 1e-6) if r1 != 0 and r2 != 0 else 1.0
    return r, kept - lr * factors[0] * r * d - w


def lamb_bitsandbytes(w, d, lr, lam, *_):
    r = norm(w) / norm(d) if norm(d) > norm(w) else 1.0
    return r, -lr * (lam * w + r * d)


def lamb_timm(w, d, lr, lam, *_):
    u = d + lam * w
    r = over(norm(w), norm(u)) if lam else 1.0
    return r, -lr * r * u


def lars_article(w, g, lam):
    return norm(w) / (norm(g) + lam * norm(w)) if norm(w) * norm(g) else 1.0


def lars_timm(w, g, lam):
    below = norm(g) + lam * norm(w) + 1e-8
    return 0.001 * norm(w) / below if lam and norm(w) * norm(g) else 1.0


def lars_optax(w, g, lam):
    below = norm(g + lam * w)
    return 0.001 * norm(w) / below if norm(w) * below else 1.0


@dataclass
class Case:
    """An optimizer, and the simulation of one layer of it."""

    make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    layer: Callable[[], Any]
    eps: float = 1e-8
    clip_inside: float | None = None  # Lamb's max_grad_norm


def torch_case(kind, layer, eps=1e-8, **options):
    return Case(lambda groups: kind(groups, **options), layer, eps)


def lamb_case(name, variant, *, debiased, factors, **options):
    options = {**LAMB_VARIANTS[name], **options}
    return Case(
        lambda groups: Lamb(groups, betas=(0.9, 0.99), **options),
        lambda: LambLayer(variant, debiased, factors),
        eps=1e-6,
        clip_inside=options.get("max_grad_norm"),
    )


def lars_case(name, ratio, momentum=0.9):
    return Case(
        lambda groups: Lars(groups, momentum=momentum, **LARS_VARIANTS[name]),
        lambda: LarsLayer(ratio, momentum),
    )


BETAS = {"betas": (0.9, 0.99)}
BOTH, NONE, FIRST = (True, True), (False, False), (True, False)
ADAM, ADAMW, SGD = torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD
CASES = {
    "AdamW": torch_case(ADAMW, lambda: AdamLayer(True), **BETAS),
    "AdamW, foreach": torch_case(ADAMW, lambda: AdamLayer(True), foreach=True, **BETAS),
    "AdamW, fused": torch_case(ADAMW, lambda: AdamLayer(True), fused=True, **BETAS),
    "AdamW, amsgrad": torch_case(ADAMW, lambda: AdamLayer(True, True), amsgrad=True, **BETAS),
    "Adam": torch_case(ADAM, lambda: AdamLayer(False), **BETAS),
    "Adam, fused": torch_case(ADAM, lambda: AdamLayer(False), fused=True, **BETAS),
    "Adam, amsgrad": torch_case(ADAM, lambda: AdamLayer(False, True), amsgrad=True, **BETAS),
    "SGD": torch_case(SGD, SgdLayer),
    "SGD, fused": torch_case(SGD, lambda: SgdLayer(0.9), momentum=0.9, fused=True),
    "SGD, momentum": torch_case(SGD, lambda: SgdLayer(0.9), momentum=0.9),
    "SGD, dampening": torch_case(
        SGD, lambda: SgdLayer(0.9, dampening=0.4), momentum=0.9, dampening=0.4
    ),
    "SGD, nesterov": torch_case(
        SGD, lambda: SgdLayer(0.9, nesterov=True), momentum=0.9, nesterov=True
    ),
    "Lamb": lamb_case("article", lamb_article, debiased=True, factors=BOTH),
    "Lamb, pytorch-lamb": lamb_case("pytorch-lamb", lamb_pytorch, debiased=False, factors=NONE),
    "Lamb, deepspeed": lamb_case("deepspeed", lamb_deepspeed, debiased=False, factors=BOTH),
    "Lamb, pytorch_optimizer": lamb_case(
        "pytorch_optimizer", lamb_kozistr, debiased=False, factors=FIRST
    ),
    "Lamb, bitsandbytes": lamb_case("bitsandbytes", lamb_bitsandbytes, debiased=True, factors=BOTH),
    "Lamb, timm": lamb_case("timm", lamb_timm, debiased=True, factors=BOTH, max_grad_norm=0.05),
    "Lars": lars_case("article", lars_article),
    "Lars, no momentum": lars_case("article", lars_article, momentum=0.0),
    "Lars, timm": lars_case("timm", lars_timm),
    "Lars, optax": lars_case("optax", lars_optax),
}


def expected_row(before, after, g, stepped: Stepped, *, rate, eps):
    """Return every column of `layers` by its definition, with None for null."""
    delta = after - before
    u = stepped.d + stepped.lam * before
    r1, r2 = norm(before), norm(u)
    m, v_hat = stepped.m, stepped.v_hat
    return {
        "trust_ratio": min(over(r1, r2), 10.0) if stepped.ratio is None else stepped.ratio,
        "weight_norm": r1,
        "direction_norm": r2,
        "update_norm": norm(delta),
        "grad_norm": norm(g),
        "undecayed_norm": norm(stepped.d),
        "undecayed_dot_weight": (stepped.d * before).sum(),
        "update_dot_weight": (delta * before).sum(),
        "grad_dot_momentum": None if m is None else (g * m).sum(),
        "momentum_norm": None if m is None else norm(m),
        "variance_sum": None if v_hat is None else v_hat.sum(),
        "surprise": None if v_hat is None else (g**2 / np.maximum(v_hat, eps**2)).mean(),
        "update_max": np.abs(delta).max(),
        "grad_max": np.abs(g).max(),
        "debias1": stepped.debias1,
        "debias2": stepped.debias2,
        "learning_rate": rate,
        "weight_decay": stepped.lam,
        "nonfinite": int((~(np.isfinite(before) & np.isfinite(g))).sum()),
        "zero_grad": int((g == 0).sum()),
        "swallowed": int(((delta == 0) & (u != 0)).sum()),
    }


def sizes_of_products(before, after, g, stepped):
    """Return the products of norms to which the error of each inner product is relative."""
    r1 = norm(before)
    return {
        "undecayed_dot_weight": norm(stepped.d) * r1,
        "update_dot_weight": norm(after - before) * r1,
        "grad_dot_momentum": 0.0 if stepped.m is None else norm(g) * norm(stepped.m),
    }


def compare(row, expected, products, where):
    assert set(RECORDED) <= set(row)
    for name, value in expected.items():
        got = row[name]
        if value is None:
            assert got is None, (where, name, got)
        elif name in COUNTS:
            assert got == value, (where, name)
        else:
            slack = TOLERANCE * products.get(name, 0.0)
            assert got == pytest.approx(value, rel=TOLERANCE, abs=slack), (where, name)


# Recording and reading the files.


def wide(tensor):
    """Return a float64 copy as an array."""
    return tensor.detach().double().numpy().copy()


def rows_of(directory, table="layers"):
    """Return the rows of a table by (step, layer), read by pyarrow from the Parquet files."""
    rows = pq.read_table(directory / table).to_pylist()
    return {(row["step"], row["layer"]): row for row in rows}


def record_steps(directory, optimizer, gradients, model=None):
    """Do a step for each list of gradients (one per parameter or None); return the rows."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    with trustlens.record(optimizer, directory, model=model):
        for of_step in gradients:
            for p, g in zip(parameters, of_step, strict=True):
                p.grad = None if g is None else g.clone()
            optimizer.step()
    return rows_of(directory)


def parameters_of(*shapes, dtype=torch.float32):
    torch.manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]
