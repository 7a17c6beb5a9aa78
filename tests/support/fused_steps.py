"""Parameters for fused and foreach steps, and checks of one step against float64 formulas."""

from __future__ import annotations

import math

import pytest
import torch

from tests.support.devices import DEVICE
from trustlens.optim import Lamb, Lars
from trustlens.optim.fused_cpu import library

needs_compiler = pytest.mark.skipif(library() is None, reason="no C compiler")

FUSED = [pytest.param(True, marks=needs_compiler), False]


def layers(shapes, scale=1.0, seed=0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    drawn = [(scale * torch.randn(s, generator=draw)).to(DEVICE, dtype) for s in shapes]
    return [torch.nn.Parameter(w) for w in drawn]


def give_gradients(params, seed, scale=1.0):
    draw = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = (scale * torch.randn(p.shape, generator=draw)).to(p.device, p.dtype)


def fused_and_foreach(make, params):
    """Return a fused optimizer, a foreach optimizer of copies on the CPU, and these copies."""
    others = [torch.nn.Parameter(p.detach().cpu().clone()) for p in params]
    return make(params, fused=True), make(others, fused=False), others


def values(optimizer, params):
    """Return the weights and all state of the parameters, by (name, index)."""
    found = {("weight", i): p.detach() for i, p in enumerate(params)}
    for i, p in enumerate(params):
        found |= {(name, i): value for name, value in optimizer.state[p].items()}
    return found


def state_of(optimizer, p):
    return {name: value.clone() for name, value in optimizer.state[p].items()}


def close(actual, expected, scale, roundings=2):
    """Return whether numbers agree up to rounding errors.

    The tolerance is a few units in the last place (ulp) of float32, relative to `scale`, the sum of
    the absolute values of the terms. For a narrower dtype, it is one ulp of it for each rounding to
    it: of the clipped gradient, and of the result. A rounding has an error of half an ulp on a GPU,
    and of up to one ulp in Triton's interpreter, which truncates.
    """
    kept = torch.finfo(actual.dtype)
    unit, least = max(6e-7, roundings * kept.eps if kept.bits < 32 else 0), kept.tiny * kept.eps
    return bool(((actual.double() - expected).abs() <= unit * scale + least + 1e-40).all())


def assert_ratio(state, ratio, of, norm):
    """Compare the trust ratio to 1e-6, times what its norm lost by cancellation.

    `of` is the norm of the sum of the terms' absolute values.
    """
    lost = 1 if norm == 0 else max(1, float(of / norm))
    assert state["trust_ratio"].item() == pytest.approx(float(ratio), rel=1e-6 * lost)


def check_lamb_step(w, g, before, p, optimizer):
    """Check one step of LAMB against float64 formulas.

    You et al. 2019, Algorithm 2, with the options of `Lamb`. Each result is compared with a formula
    of the stored results that it depends on.
    """
    state, group = optimizer.state[p], optimizer.param_groups[0]
    w, g, after = w.double(), g.double(), p.detach()
    g = g / state["grad_divisor"].double() if "grad_divisor" in state else g
    (b1, b2), eta, lam = group["betas"], float(group["lr"]), group["weight_decay"]
    m, v = (before[k].double() if before else 0 * w for k in ("exp_avg", "exp_avg_sq"))
    assert close(state["exp_avg"], b1 * m + (1 - b1) * g, m.abs() + g.abs())
    # Squaring a clipped gradient doubles its relative rounding error δ, and storing v adds another:
    # |v - b2·v₀ - (1-b2)·g²| ≤ 2δ·(1-b2)·g² + δ·(b2·v₀ + (1-b2)·g²) ≤ 3δ·(v₀ + g²). (With
    # truncation, all errors are negative: there is no term in δ².)
    assert close(state["exp_avg_sq"], b2 * v + (1 - b2) * g * g, v + g * g, roundings=3)

    m, v, t = state["exp_avg"].double(), state["exp_avg_sq"].double(), state["step"].item()
    c1, c2 = 1 - b1**t, math.sqrt(1 - b2**t)
    debias, decay = group["debias"], group["decay"]
    inside = (c1, c2) if debias is True else (1, 1)
    d = m / inside[0] / (v.sqrt() / inside[1] + group["eps"])
    factor = {"rate": c2 / c1, "first": 1 / c1}.get(debias, 1.0)
    kept = w if decay == "inside" else (1 - eta * lam) * w
    u = d + lam * w if decay == "inside" else d
    r1, r2 = (kept if decay == "first" else w).norm(), u.norm()
    ratio = 1.0
    if (lam or group["always_adapt"]) and r2 != 0 and (r1 != 0 or not group["unit_at_zero"]):
        r1 = min(r1, group["clip_weight_norm"] or math.inf)
        ratio = group["trust_coefficient"] * r1 / (r2 + group["ratio_eps"])
        low, high = group["clip_ratio"] or (0, math.inf)
        ratio = min(max(ratio, low), high)
    abs_u = d.abs() + (lam * w.abs() if decay == "inside" else 0)
    assert_ratio(state, ratio, abs_u.norm(), r2)
    share = eta * factor * state["trust_ratio"].double()
    assert close(after, kept - share * u, w.abs() + 2 * share * abs_u)


def check_lars_step(w, g, before, p, optimizer):
    """Check one step of LARS in the same way: You et al. 2017, Algorithm 1."""
    state, group = optimizer.state[p], optimizer.param_groups[0]
    w, g = w.double(), g.double()
    eta, mu, lam = float(group["lr"]), group["momentum"], group["weight_decay"]
    u = g + lam * w
    measured = g.norm() if group["norm"] == "sum" else u.norm()
    ratio = 1.0
    if (lam or group["always_adapt"]) and w.norm() != 0 and measured != 0:
        below = g.norm() + lam * w.norm() if group["norm"] == "sum" else measured
        ratio = float(group["trust_coefficient"] * w.norm() / (below + group["eps"]))
    assert_ratio(state, ratio, (g.abs() + lam * w.abs()).norm(), measured)
    ratio = state["trust_ratio"].double()
    b = before["momentum_buffer"].double() if "momentum_buffer" in before else 0 * w
    scale = mu * b.abs() + ratio * (g.abs() + lam * w.abs())
    b = mu * b + ratio * u
    if mu:
        assert close(state["momentum_buffer"], b, 3 * scale)
    assert close(p.detach(), w - eta * b, w.abs() + 3 * eta * scale)


CHECKS = {Lamb: check_lamb_step, Lars: check_lars_step}
