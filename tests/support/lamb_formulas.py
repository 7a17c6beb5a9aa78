"""Float64 formulas of LAMB and its variants, which share no code with the optimizer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BETA1, BETA2, EPS, LR = 0.9, 0.99, 1e-6, 0.02
STEPS = 5


def ratio_or_one(r1, r2):
    return r1 / r2 if r1 != 0 and r2 != 0 else 1.0


def norm(x):
    return float(np.sqrt((x * x).sum()))


@dataclass
class Adam:
    """One layer's moving averages m and v after t steps, with learning rate eta and decay lam."""

    m: np.ndarray
    v: np.ndarray
    t: int
    eta: float
    lam: float

    @property
    def c1(self):
        return 1 - BETA1**self.t

    @property
    def c2(self):
        return 1 - BETA2**self.t

    @property
    def debiased(self):
        return (self.m / self.c1) / (np.sqrt(self.v / self.c2) + EPS)

    @property
    def plain(self):
        return self.m / (np.sqrt(self.v) + EPS)


# Each function returns the new weights and the trust ratio from the weights and the averages.


def article(w, a):
    u = a.debiased + a.lam * w
    r = min(ratio_or_one(norm(w), norm(u)), 10.0)
    return w - a.eta * r * u, r


def pytorch_lamb(w, a):
    u = a.plain + a.lam * w
    r = ratio_or_one(min(norm(w), 10.0), norm(u))
    return w - a.eta * r * u, r


def torch_optimizer_debiased(w, a):
    u = a.plain + a.lam * w
    r = ratio_or_one(min(norm(w), 10.0), norm(u))
    return w - a.eta * np.sqrt(a.c2) / a.c1 * r * u, r


def pytorch_optimizer(w, a):
    w = w - a.eta * a.lam * w
    r1, r2 = min(norm(w), 10.0), norm(a.plain)
    r = r1 / (r2 + EPS) if r1 != 0 and r2 != 0 else 1.0
    return w - a.eta / a.c1 * r * a.plain, r


def apex(w, a):
    u = a.debiased + a.lam * w
    r = ratio_or_one(norm(w), norm(u)) if a.lam != 0 else 1.0
    return w - a.eta * r * u, r


def apex_nvlamb(w, a):
    u = a.debiased + a.lam * w
    r = ratio_or_one(norm(w), norm(u))
    return w - a.eta * r * u, r


def deepspeed(w, a):
    u = a.plain + a.lam * w
    r1, r2 = norm(w), norm(u)
    r = min(max(r1 / r2, 0.01), 10.0) if r1 != 0 and r2 != 0 else 1.0
    return w - a.eta * np.sqrt(a.c2) / a.c1 * r * u, r


def timm_trust_clip(w, a):
    u = a.debiased + a.lam * w
    r = min(ratio_or_one(norm(w), norm(u)), 1.0) if a.lam != 0 else 1.0
    return w - a.eta * r * u, r


def timm_decoupled(w, a):
    w = w * (1 - a.eta * a.lam)
    r = ratio_or_one(norm(w), norm(a.debiased)) if a.lam != 0 else 1.0
    return w - a.eta * r * a.debiased, r


def bitsandbytes(w, a, max_unorm=1.0):
    r1, r2 = max_unorm * norm(w), norm(a.debiased)
    r = r1 / r2 if r2 > r1 else 1.0
    return (1 - a.eta * a.lam) * w - a.eta * r * a.debiased, r


def bitsandbytes_half(w, a):
    return bitsandbytes(w, a, max_unorm=0.5)


def optax(w, a):
    u = a.debiased + a.lam * w
    r = ratio_or_one(norm(w), norm(u))
    return w - a.eta * r * u, r


# The weights of "zero" are 0; those of "large" give r > 10 and ‖w‖ > 10, those of "small" r < 0.01;
# the gradients of "idle" are 0.
SCALES = {"matrix": 1, "bias": 0.3, "scalar": 2, "zero": 0, "large": 60, "small": 1e-3, "idle": 1}
SHAPES = {"matrix": (6, 4), "bias": (5,), "scalar": ()}


def problem(seed=0, steps=STEPS):
    """Return weights, and gradients of each step, by name: float64 arrays of float32 values."""
    rng = np.random.default_rng(seed)
    weights = {
        name: (scale * rng.normal(size=SHAPES.get(name, (3, 5)))).astype(np.float32)
        for name, scale in SCALES.items()
    }
    weights["zero"][:] = 0
    grads = [
        {name: rng.normal(size=w.shape).astype(np.float32) for name, w in weights.items()}
        for _ in range(steps)
    ]
    for step_grads in grads:
        step_grads["idle"][...] = 0
    wide = {name: w.astype(np.float64) for name, w in weights.items()}
    return wide, [
        {name: g.astype(np.float64) for name, g in step_grads.items()} for step_grads in grads
    ]


def simulate(formula, weights, grads, decay, *, max_grad_norm=None, rates=None):
    """Return, for each step, weights and ratios by name, computed with a formula above."""
    w = {name: value.copy() for name, value in weights.items()}
    m = {name: np.zeros_like(value) for name, value in weights.items()}
    v = {name: np.zeros_like(value) for name, value in weights.items()}
    t = dict.fromkeys(weights, 0)
    trace = []
    for i, step_grads in enumerate(grads):
        total = np.sqrt(sum((g * g).sum() for g in step_grads.values()))
        divisor = 1.0 if max_grad_norm is None else max(1.0, total / max_grad_norm)
        ratios = {}
        for name, g in step_grads.items():
            t[name] += 1
            m[name] = BETA1 * m[name] + (1 - BETA1) * g / divisor
            v[name] = BETA2 * v[name] + (1 - BETA2) * (g / divisor) ** 2
            adam = Adam(m[name], v[name], t[name], LR if rates is None else rates[i], decay)
            w[name], ratios[name] = formula(w[name], adam)
        trace.append((dict(w), ratios))
    return trace
