"""What an optimizer of torch.optim does in a step, computed by torch's own code in float64.

Before each step a shadow is made: an optimizer of the same class and options, with float64 copies
of the parameters and of the state. It does the same step. The change of its weights gives the
direction, ``d = −Δw/η − λw``; its averages are those of the step. The applied update is computed
from the weights of the real optimizer.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import trustlens
from tests.support.simulation import norm, over
from tests.support.supported import LAST_PLACES
from trustlens.schema import COUNTS, RECORDED

OF_WEIGHTS = {"weight_norm", "trust_ratio", "undecayed_dot_weight", "update_dot_weight"}
# State entries without dimensions; the shadow keeps their dtype.
NUMBERS = {"step", "mu_product", "eta", "mu"}


@dataclass
class Step:
    """One layer in one step. Arrays are float64; complex ones are real with a last dimension 2."""

    group: dict[str, Any]
    before: np.ndarray
    g: np.ndarray | None
    shadow: np.ndarray | None = None  # w after the step in float64 arithmetic
    state: dict[str, Any] = field(default_factory=dict)
    after: np.ndarray | None = None
    real_state: dict[str, Any] = field(default_factory=dict)  # after the step
    dtype: torch.dtype = torch.float32
    undone: bool = False
    t: int = 0


def real(tensor):
    """Return a copy as a float64 array, dense and real."""
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return tensor.cpu().double().numpy().copy()


def widened(value):
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach().clone()
    return value.to(torch.complex128 if value.is_complex() else torch.float64)


def plain_options(group, parameters):
    """Return the group's options for torch's single-tensor loop, with numbers instead of tensors.

    Betas that are tensors stay tensors unless the step is fused, since that changes their rounding.
    """
    plain = {"foreach": False, "fused": None}
    if group.get("fused") or "lambd" in group:
        plain["capturable"] = False
    options = {k: plain.get(k, v) for k, v in group.items() if k not in {"params", "param_names"}}
    if isinstance(options["lr"], torch.Tensor):
        options["lr"] = float(options["lr"])
    if isinstance(options.get("betas", (0,))[0], torch.Tensor) and group.get("fused"):
        options["betas"] = tuple(float(beta) for beta in options["betas"])
    if options.get("eps", 0) == (None, 1e-3):  # Adafactor: ε of the first parameter's dtype
        first = next((p for p in parameters if p.grad is not None), None)
        if first is not None:
            options["eps"] = (torch.finfo(first.dtype).eps, 1e-3)
    return options


def shadow_step(optimizer):
    """Do the step in float64; return the weights and state after it, by the parameter's id."""
    groups, pairs = [], []
    for group in optimizer.param_groups:
        copies = [torch.nn.Parameter(widened(p), requires_grad=False) for p in group["params"]]
        pairs += zip(group["params"], copies, strict=True)
        groups.append({**plain_options(group, group["params"]), "params": copies})
    shadow = type(optimizer)(groups)
    for p, q in pairs:
        q.grad = None if p.grad is None else widened(p.grad)
        state = optimizer.state.get(p)
        if state:
            shadow.state[q] = {
                k: copy.deepcopy(v) if k in NUMBERS else widened(v) for k, v in state.items()
            }
    shadow.step()
    return {id(p): (real(q), dict(shadow.state.get(q, {}))) for p, q in pairs}


# The terms of the columns, by the optimizers' documentation.


def decoupled_decay(kind, group):
    if kind in {"Adafactor", "Muon"}:
        return group["weight_decay"]
    if kind == "ASGD":
        return group["lambd"]
    return group["weight_decay"] if group.get("decoupled_weight_decay") else 0.0


def momentum_of(state):
    for name in ("exp_avg", "momentum_buffer"):
        if state.get(name) is not None:
            return real(state[name])
    return None


def beta(group, which):
    return float(group["betas"][which])


def one_minus_power(kind, group, which, t):
    """Return 1 − βᵗ as the step computes it: in float32 if it uses a tensor β or t."""
    tensor = group.get("capturable") or (group.get("differentiable") and kind in {"Adam", "AdamW"})
    beta_given = group["betas"][which]
    if group.get("fused") or not (tensor or isinstance(beta_given, torch.Tensor)):
        return 1 - beta(group, which) ** t
    device = group["params"][0].device
    return float(1 - beta_given ** (torch.tensor(float(t), device=device) if tensor else t))


def second_moment(kind, state, group, t):
    """Return v̂, and the ε that is added to its root."""
    v = eps = None
    if kind in {"Adam", "AdamW", "NAdam", "RAdam", "SparseAdam"}:
        return second_moment_of_adam(kind, state, group, t)
    if kind == "Adagrad":
        v, eps = real(state["sum"]), group["eps"]
    elif kind == "RMSprop":
        mean = real(state["grad_avg"]) if group["centered"] else 0.0
        v, eps = real(state["square_avg"]) - mean**2, group["eps"]
    elif kind == "Adadelta":
        v, eps = real(state["square_avg"]), np.sqrt(group["eps"])
    elif kind == "Adafactor":
        eps = plain_options(group, group["params"])["eps"][0]
        if "variance" in state:
            return real(state["variance"]), eps
        row, column = real(state["row_var"]), real(state["col_var"])
        v = row * column / np.maximum(row.mean(-2, keepdims=True), eps)
    return v, eps


def second_moment_of_adam(kind, state, group, t):
    v = real(state["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"])
    eps, rest = group["eps"], one_minus_power(kind, group, 1, t)
    if kind == "RAdam" and not rectified(group, t, rest):
        return v, eps
    if kind in {"RAdam", "SparseAdam"}:  # √(v/c) + ε/√c = (√v + ε)/√c
        eps = eps * np.sqrt(1 / rest)
    return v / rest, eps


def rectified(group, t, rest):
    """Return whether RAdam divides by √v̂ in step t (Liu et al. 2020, Algorithm 2)."""
    longest = 2 / (1 - beta(group, 1)) - 1
    return longest - 2 * t * (1 - rest) / rest > 5


def debias_factors(kind, group, t):
    if kind in {"Adam", "AdamW", "SparseAdam", "RAdam", "NAdam", "Adamax"}:
        first, second = (1 / one_minus_power(kind, group, which, t) for which in (0, 1))
        if kind == "NAdam":
            drift = group["momentum_decay"]
            rates = beta(group, 0) * (1 - 0.5 * 0.96 ** (np.arange(1, t + 2) * drift))
            first = 1 / (1 - rates.prod())
        if kind == "RAdam" and not rectified(group, t, 1 / second):
            second = 1.0
        return first, None if kind == "Adamax" else second
    first = 1.0 if group.get("momentum") else None
    return first, 1.0 if kind in {"Adagrad", "RMSprop", "Adadelta", "Adafactor"} else None


def expected_row(kind, step, null):
    """Return every column by its definition (None for null), and the sizes of inner products."""
    w, g, delta = step.before, step.g, step.after - step.before
    if g is None:
        here = {"weight_norm": norm(w), "update_norm": norm(delta),
                "nonfinite": count_not_finite(w), "update_max": largest(delta),
                "update_dot_weight": (delta * w).sum(),
                "learning_rate": float(step.group["lr"])}  # fmt: skip
        return dict.fromkeys(RECORDED) | here, {}
    rate, lam = float(step.group["lr"]), decoupled_decay(kind, step.group)
    change = delta if step.shadow is None else step.shadow - w
    u = -change / rate
    d = u - lam * w
    m = momentum_of(step.real_state if step.shadow is None else step.state)
    v = real_v = eps = None
    if step.shadow is not None:
        v, eps = second_moment(kind, step.state, step.group, step.t)
        # If gradient and decay cancel, v is float32's rounding error: g²/v may be the whole sum.
        real_v, _ = second_moment(kind, step.real_state, step.group, step.t)
    first, second = debias_factors(kind, step.group, step.t)
    row = {
        "trust_ratio": min(over(norm(w), norm(u)), 10.0),
        "weight_norm": norm(w),
        "direction_norm": norm(u),
        "update_norm": norm(delta),
        "grad_norm": norm(g),
        "undecayed_norm": norm(d),
        "undecayed_dot_weight": (d * w).sum(),
        "update_dot_weight": (delta * w).sum(),
        "grad_dot_momentum": None if m is None else (g * m).sum(),
        "momentum_norm": None if m is None else norm(m),
        "variance_sum": None if v is None else v.sum(),
        "surprise": surprise(g, real_v, eps),
        "update_max": largest(delta),
        "grad_max": largest(g),
        "debias1": first,
        "debias2": second,
        "learning_rate": rate,
        "weight_decay": lam,
        "nonfinite": int((~(np.isfinite(w) & np.isfinite(g))).sum()),
        "zero_grad": int((g == 0).sum()),
        "swallowed": int(((delta == 0) & (u != 0)).sum()),
    }
    assert {name for name in row if row[name] is None} - {"surprise"} <= set(null)
    products = {
        "direction_norm": norm(d) + lam * norm(w),
        "undecayed_dot_weight": norm(d) * norm(w),
        "update_dot_weight": norm(delta) * norm(w),
        "grad_dot_momentum": 0.0 if m is None else norm(g) * norm(m),
    }
    return {k: None if k in null else v for k, v in row.items()}, products


def count_not_finite(values):
    return int((~np.isfinite(values)).sum())


def largest(values):
    return np.abs(values).max() if values.size else 0.0


def surprise(g, v, eps):
    return None if v is None or not v.size else (g**2 / np.maximum(v, eps**2)).mean()


def compare(kind, row, step, *, null, bound, where):
    """Check that a row equals its definition, within the bound."""
    assert set(RECORDED) <= set(row)
    expected, products = expected_row(kind, step, null)
    slack = slacks(step, expected, products, bound)
    lost = False
    if step.undone:
        moved = expected["update_norm"]
        lost = not expected["weight_norm"] > moved / 32
        if expected["weight_norm"] < moved / 128:
            assert row["weight_norm"] is None, where
    for name, value in expected.items():
        got = row[name]
        if name in OF_WEIGHTS and lost and got is None:
            continue
        if name == "swallowed" and step.undone:
            assert got is None, (where, name)
        elif name in COUNTS or value is None:
            assert got == value, (where, name, got, value)
        else:
            assert got is not None, (where, name, value)
            off = abs(got - value)
            close = off <= bound * abs(value) + slack.get(name, 0.0)
            assert close or np.array_equal(got, np.float32(value), equal_nan=True), (
                where, name, got, value, off / (abs(value) or 1))  # fmt: skip


def slacks(step, expected, products, bound):
    """Return the absolute errors allowed beyond the bound, for cancellation and rounded weights."""
    slack = {name: bound * size for name, size in products.items()}
    # Δw/η has the float64 rounding of the weights.
    own = 4e-16 * norm(step.before) / float(step.group["lr"])
    for name, size in (("direction_norm", 1), ("undecayed_norm", 1),
                       ("undecayed_dot_weight", norm(step.before))):  # fmt: skip
        slack[name] = slack.get(name, 0.0) + own * size
    if "direction_norm" in slack and expected["direction_norm"]:  # d and λw may also cancel
        share = slack["direction_norm"] / expected["direction_norm"]
        slack["trust_ratio"] = expected["trust_ratio"] * share
    w, delta = step.before, step.after - step.before
    places = LAST_PLACES if step.dtype in {torch.float32, torch.complex64} else 1e-14
    rounding = places * max(norm(w), norm(step.after))
    if step.undone:
        slack |= {"update_norm": rounding, "weight_norm": rounding,
                  "update_max": places * max(largest(w), largest(step.after))}  # fmt: skip
        slack["update_dot_weight"] = products["update_dot_weight"] * bound + rounding * (
            norm(w) + norm(delta)
        )
        if products["undecayed_dot_weight"]:
            slack["undecayed_dot_weight"] += rounding * products["undecayed_dot_weight"] / norm(w)
    return slack


# Training.


@dataclass
class Layer:
    """A parameter with its gradient in each step, or None."""

    name: str
    weights: torch.Tensor
    grads: list[torch.Tensor | None]
    group: int = 0


def parameters_of(layers, differentiable):
    return {
        layer.name: torch.nn.Parameter(
            layer.weights.clone(), requires_grad=not differentiable and layer.grads is not None
        )
        for layer in layers
    }


def train(case, layers, directory=None, *, rates=(1.0,), before_step=None):
    """Do a step for each gradient; record and shadow them if a directory is given.

    Return the optimizer, its parameters by name, and each layer's `Step` by (step, name).
    """
    parameters = parameters_of(layers, case.options.get("differentiable"))
    count = max(layer.group for layer in layers) + 1
    groups = [
        {"params": [(la.name, parameters[la.name]) for la in layers if la.group == number]}
        for number in range(count)
    ]
    optimizer = case.make(groups)
    for group, times in zip(optimizer.param_groups, rates, strict=False):
        group["lr"] = group["lr"] * times
    recorder = None if directory is None else trustlens.record(optimizer, directory)
    seen: dict[tuple[int, str], Step] = {}
    for t in range(len(layers[0].grads)):
        for layer in layers:
            grad = layer.grads[t]
            parameters[layer.name].grad = None if grad is None else grad.clone()
        if before_step is not None:
            before_step(t, optimizer, parameters)
        if recorder is not None:
            seen |= before_step_of(t + 1, optimizer, parameters)
        optimizer.step()
        if recorder is not None:
            add_result(t + 1, optimizer, parameters, seen)
    if recorder is not None:
        recorder.close()
    return optimizer, parameters, seen


def before_step_of(number, optimizer, parameters):
    """Return each layer's `Step` before the step, with the result of the shadow."""
    shadowed = {} if type(optimizer).__name__ == "Muon" else shadow_step(optimizer)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    seen = {}
    for name, p in parameters.items():
        group = dict(groups[id(p)])
        group["lr"] = float(group["lr"])
        g = None if p.grad is None else real(p.grad) * (-1 if group.get("maximize") else 1)
        done = int(optimizer.state.get(p, {}).get("step", 0))
        after, state = shadowed.get(id(p), (None, {}))
        seen[number, name] = Step(group, real(p), g, after, state, dtype=p.dtype, t=done + 1)
    return seen


def add_result(number, optimizer, parameters, seen):
    """Add the weights and state after the step."""
    for name, p in parameters.items():
        step = seen[number, name]
        step.after = real(p)
        step.real_state = {k: widened(v) for k, v in optimizer.state.get(p, {}).items()}
