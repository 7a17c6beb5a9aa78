"""Extreme values: squares outside the range of float32, NaN and infinities, and 16-bit weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import trustlens
from tests.support import oracle
from tests.support.oracle import Layer, train
from tests.support.simulation import norm, rows_of, wide
from tests.support.supported import CASES, EXACT, LAST_PLACES
from trustlens.recording.measuring import snapshots
from trustlens.schema import COUNTS

SHAPE = (20, 3)
STEPS = 4
BREAKS = 2  # the step, counted from 0, in which a value becomes NaN or infinite
BROKEN = [("g", np.nan), ("g", np.inf), ("w", np.nan), ("w", -np.inf), ("m", np.nan), ("m", np.inf)]
WAYS = {"copied": 1 << 30, "undone": -1}
DENSE = [case for case in CASES if case.kind.__name__ not in {"SparseAdam", "Muon", "LBFGS"}]
OF_DIRECTION = {"direction_norm", "undecayed_norm", "undecayed_dot_weight", "trust_ratio"}
OF_LOST_WEIGHTS = {"weight_norm", "trust_ratio", "undecayed_dot_weight", "update_dot_weight"}


def one_of_each(cases):
    """Yield the first case of each kind, and every fused case."""
    met = set()
    for case in cases:
        if (case.kind, case.when) not in met or "fused" in case.options:
            met.add((case.kind, case.when))
            yield case


def layer(name, seed, *, steps=STEPS, dtype=torch.float32, size=1.0, grads=1.0):
    make = torch.Generator().manual_seed(seed)
    weights = torch.randn(SHAPE, generator=make) * size
    of_steps = [torch.randn(SHAPE, generator=make) * size * grads for _ in range(steps)]
    return Layer(name, weights.to(dtype), [g.to(dtype) for g in of_steps])


def set_broken_values(optimizer, parameters):
    """Set one element of each layer's gradient, weights or state to NaN or infinity."""
    for i, (where, value) in enumerate(BROKEN):
        p = parameters[f"{where} {value}"]
        state = optimizer.state[p]
        tensor = {"g": p.grad, "w": p.data}.get(where)
        if tensor is None:
            names = ("exp_avg", "momentum_buffer", "square_avg", "sum", "prev", "acc_delta")
            tensor = next((state[n] for n in names if state.get(n) is not None), p.grad)
        tensor[i, 1] = value


@np.errstate(all="ignore")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", list(one_of_each(DENSE)), ids=str)
def test_a_single_value_that_is_not_finite(case, way, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots, "SMALL", WAYS[way])
    names = [*(f"{where} {value}" for where, value in BROKEN), "healthy"]

    def before_step(t, optimizer, parameters):
        if t == BREAKS:
            set_broken_values(optimizer, parameters)

    layers = [layer(name, seed) for seed, name in enumerate(names)]
    _, _, seen = train(case, layers, tmp_path / "run", before_step=before_step)
    rows = rows_of(tmp_path / "run")
    for (t, name), step in seen.items():
        undone = way == "undone" and not case.copies and t > 1
        expected, _ = oracle.expected_row(case.kind.__name__, step, case.null)
        if undone:  # the weights recovered from an update that is not finite are not finite either
            broke = ~(np.isfinite(step.before) & np.isfinite(step.g) & np.isfinite(step.after))
            expected["nonfinite"] = broke.sum()
        row = rows[t, name]
        assert row["nonfinite"] == expected["nonfinite"], (t, name)
        assert row["zero_grad"] == 0
        if name == "healthy" or t <= BREAKS:
            present = [c for c, v in expected.items() if v is not None]
            if undone:
                present.remove("swallowed")
            assert all(np.isfinite(row[c]) for c in present), (t, name)
        else:
            check_not_finite(row, expected, step, undone=undone)


def check_not_finite(row, expected, step, *, undone):
    """Check that columns that should not be finite are not, or are null if w is not recoverable."""
    moved_finitely = np.isfinite(expected["update_norm"])
    for column, value in expected.items():
        if value is None or column in COUNTS:
            continue
        if column in OF_DIRECTION and not np.isfinite(step.before).all():
            continue  # computed from the state, which is finite although the weights are not
        if undone and column in OF_LOST_WEIGHTS and (row[column] is None or not moved_finitely):
            assert row[column] is None, column
            assert not np.isfinite(row["update_norm"])
        elif not np.isfinite(value):
            assert not np.isfinite(row[column]), column
            assert undone or str(row[column]) == str(np.float32(value)), column


def direction_of(kind, group, state, g, w):
    """Return d, computed from the state after a step by its formula."""
    if kind == "SGD":
        buffer = state.get("momentum_buffer")
        return g + group["weight_decay"] * w if buffer is None else wide(buffer)
    t, (beta1, beta2) = int(state["step"]), group["betas"]
    m, v = wide(state["exp_avg"]), wide(state["exp_avg_sq"])
    return m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + group["eps"])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [1e25, 1e-25])
@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.kind.__name__ in {"SGD", "Adam", "AdamW"}
     and not {"nesterov", "amsgrad", "maximize", "betas", "differentiable"} & c.options.keys()],
    ids=str,
)  # fmt: skip
def test_squares_outside_the_range_of_float32(case, size, way, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots, "SMALL", WAYS[way])
    layers = [layer("layer", 3, steps=1, size=size), layer("again", 4, steps=1, size=size)]
    if way == "undone":
        for each in layers:
            each.grads *= 2  # a second step: the weights are always copied in the first
    optimizer, parameters, seen = train(case, layers, tmp_path / "run")
    row = rows_of(tmp_path / "run")[len(layers[0].grads), "layer"]
    step, p = seen[len(layers[0].grads), "layer"], parameters["layer"]
    group, state = step.group, optimizer.state.get(p, {})
    d = direction_of(case.kind.__name__, group, state, step.g, step.before)
    u = d + oracle.decoupled_decay(case.kind.__name__, group) * step.before
    delta = step.after - step.before
    assert np.isfinite([norm(u), norm(delta), norm(step.before)]).all()
    rounding = LAST_PLACES * norm(step.before) if way == "undone" else 0.0
    if way == "copied" or norm(step.before) > norm(delta) / 64:
        assert row["weight_norm"] == pytest.approx(norm(step.before), rel=EXACT)
    assert row["grad_norm"] == pytest.approx(norm(step.g), rel=EXACT)
    assert row["grad_max"] == pytest.approx(np.abs(step.g).max(), rel=EXACT)
    assert row["direction_norm"] == pytest.approx(norm(u), rel=EXACT)
    assert row["update_norm"] == pytest.approx(norm(delta), rel=EXACT, abs=rounding)
    assert row["nonfinite"] == row["zero_grad"] == 0
    if "exp_avg_sq" in state:
        left = 1 - group["betas"][1] ** int(state["step"])
        assert row["variance_sum"] == np.float32((wide(state["exp_avg_sq"]) / left).sum())
        assert row["variance_sum"] < 1e-40 or row["variance_sum"] == np.inf


SIXTEEN_BIT_CASES = [  # fused SGD with momentum has a test of its own, below
    case for case in one_of_each(DENSE) if not case.options.keys() >= {"fused", "momentum"}
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", SIXTEEN_BIT_CASES, ids=str)
def test_16_bit_weights(case, dtype, tmp_path):
    """Columns of weights and gradients are exact; those of the state are as exact as the state."""
    layers = [layer(f"layer{seed}", seed, dtype=dtype, grads=10.0) for seed in range(2)]
    _, _, seen = train(case, layers, tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    of_state = {"trust_ratio", "direction_norm", "undecayed_norm", "undecayed_dot_weight",
                "grad_dot_momentum", "momentum_norm", "variance_sum", "surprise"}  # fmt: skip
    for (t, name), step in seen.items():
        expected, _ = oracle.expected_row(case.kind.__name__, step, case.null)
        for column, value in expected.items():
            got = rows[t, name][column]
            if value is None or column in {"nonfinite", "zero_grad", "swallowed"}:
                assert got == value, (t, name, column)
            elif column not in of_state:
                assert got == pytest.approx(value, rel=EXACT, abs=1e-9), (t, name, column)
            elif column.endswith("norm") and column != "momentum_norm":
                assert got == pytest.approx(value, rel=0.05), (t, name, column)


def test_the_direction_is_not_computed_from_a_momentum_that_was_not_applied(tmp_path):
    """With 16-bit weights, the fused SGD of torch 2.13 applies another buffer than it stores."""
    p = torch.nn.Parameter(torch.linspace(-1, 1, 60).bfloat16())
    optimizer = torch.optim.SGD([p], lr=0.5, momentum=0.9, fused=True)
    seen = []
    with trustlens.record(optimizer, tmp_path / "run"):
        for t in range(4):
            p.grad = torch.linspace(1, 3 + t, 60).bfloat16()
            seen.append(p.detach().double())
            optimizer.step()
    seen.append(p.detach().double())
    rows = rows_of(tmp_path / "run")
    for t in (2, 3, 4):
        applied = (seen[t] - seen[t - 1]).norm().item() / 0.5
        assert rows[t, "group0.param0"]["direction_norm"] == pytest.approx(applied, rel=1e-6)
