"""Which weights and gradients are copied before a step, and what is measured with them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

import trustlens
from tests.support.simulation import TOLERANCE, norm, parameters_of, record_steps, rows_of, wide
from trustlens.recording.measuring import snapshots
from trustlens.recording.measuring.layers import find_layers
from trustlens.recording.measuring.snapshots import SMALL, WeightSnapshots
from trustlens.recording.optimizers import family_of
from trustlens.trust_ratio import LAMB_VARIANTS

LARGE = (SMALL + 1,)


def copied_bytes(optimizer, steps=2):
    """Return the bytes that a recorder of this optimizer copies for the last of some steps."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    copies = WeightSnapshots(optimizer, family_of(optimizer))
    copies.follow(find_layers([optimizer], None))
    held = 0
    for _ in range(steps):
        for p in parameters:
            p.grad = torch.ones_like(p)
        copies.take(None)
        held = sum(
            t.nbytes
            for place in range(len(parameters))
            for t in (copies.weights(place), copies.grad(place))
            if t is not None
        )
        optimizer.step()
        copies.done()
    return held


class SignDescent(torch.optim.Optimizer):
    """Sign descent that also shrinks weights without a gradient, and overwrites p.grad."""

    def __init__(self, params, lr=0.01):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    p.mul_(0.5)
                else:
                    p.grad.data.sign_()  # `.data` bypasses torch's version counter
                    p.add_(p.grad, alpha=-group["lr"])


COPIES = {  # number of copies of 4 bytes a parameter, after a layer's first step
    "AdamW": (torch.optim.AdamW, {}, 0),
    "Adam, coupled decay": (torch.optim.Adam, {"weight_decay": 0.1}, 0),
    "SGD": (torch.optim.SGD, {"momentum": 0.9}, 0),
    "SGD without state": (torch.optim.SGD, {}, 0),
    "Adafactor": (torch.optim.Adafactor, {}, 0),
    "RMSprop": (torch.optim.RMSprop, {}, 0),
    "RMSprop, coupled decay": (torch.optim.RMSprop, {"weight_decay": 0.1}, 1),
    "a rate so high that the decay changes the sign of w": (
        torch.optim.AdamW,
        {"lr": 1.0, "weight_decay": 1.0},
        1,
    ),
    "no rate": (torch.optim.AdamW, {"lr": 0.0}, 1),
    "LAMB": (trustlens.optim.Lamb, {"weight_decay": 0.1}, 0),
    "LAMB whose decay may change the sign of w": (
        trustlens.optim.Lamb,
        {"weight_decay": 0.1, "clip_ratio": None},
        1,
    ),
    "LARS, which provides its sums": (trustlens.optim.Lars, {}, 0),
    "LARS, which copies weights itself": (trustlens.optim.Lars, {"fused": False}, 0),
    "unknown": (SignDescent, {}, 2),
}


@pytest.mark.parametrize("name", COPIES)
def test_only_what_is_needed_is_copied(name):
    kind, options, copies = COPIES[name]
    (p,) = parameters_of(LARGE)
    assert copied_bytes(kind([p], **options)) == copies * p.nbytes


def test_what_is_always_copied():
    small, half = torch.randn(SMALL), torch.randn(*LARGE).bfloat16()
    for w in (small, half):
        assert copied_bytes(torch.optim.AdamW([torch.nn.Parameter(w)])) == w.nbytes
    large = torch.nn.Parameter(torch.randn(*LARGE))
    assert copied_bytes(torch.optim.AdamW([large]), steps=1) == large.nbytes  # its first step
    assert copied_bytes(torch.optim.SGD([large]), steps=1) == large.nbytes


def test_the_ratio_of_a_large_layer_that_starts_at_zero_is_recorded(tmp_path):
    """Its weights are copied in its first step, since the state could not show that they were 0."""
    (p,) = parameters_of(LARGE)
    torch.nn.init.zeros_(p)
    optimizer = torch.optim.AdamW([p], lr=0.01)
    rows = record_steps(tmp_path / "run", optimizer, [[torch.randn(*LARGE)] for _ in range(3)])
    first, second = rows[1, "group0.param0"], rows[2, "group0.param0"]
    assert first["weight_norm"] == 0
    assert first["trust_ratio"] == 1
    assert second["weight_norm"] == pytest.approx(first["update_norm"], rel=TOLERANCE)
    assert second["trust_ratio"] == pytest.approx(
        second["weight_norm"] / second["direction_norm"], rel=TOLERANCE
    )


def test_quantities_of_weights_that_cannot_be_recovered_are_null(tmp_path):
    """A large layer is set to 0 during the run: after its next step w is lost in Δw's rounding."""
    (p,) = parameters_of(LARGE)
    optimizer = torch.optim.AdamW([p], lr=0.01)
    with trustlens.record(optimizer, tmp_path / "run"):
        for t in range(3):
            if t == 1:
                torch.nn.init.zeros_(p)
            p.grad = torch.randn(*LARGE)
            optimizer.step()
    row = rows_of(tmp_path / "run")[2, "group0.param0"]
    lost = {"weight_norm", "trust_ratio", "undecayed_dot_weight", "update_dot_weight", "swallowed"}
    assert {name for name, value in row.items() if value is None} == lost
    assert row["update_norm"] == pytest.approx(norm(wide(p)), rel=0.8)


def test_an_unknown_optimizer_is_measured(tmp_path):
    used, idle = parameters_of((30, 4), (5,))
    optimizer = SignDescent([used, idle], lr=0.01)
    before = [wide(used), wide(idle)]
    g = torch.randn(30, 4)
    rows = record_steps(tmp_path / "run", optimizer, [[g, None]])
    row, other = rows[1, "group0.param0"], rows[1, "group0.param1"]
    change = wide(used) - before[0]
    assert row["grad_norm"] == pytest.approx(norm(wide(g)), rel=TOLERANCE)
    assert row["update_norm"] == pytest.approx(norm(change), rel=TOLERANCE)
    assert row["direction_norm"] == pytest.approx(norm(change) / 0.01, rel=TOLERANCE)
    assert row["trust_ratio"] == pytest.approx(
        min(norm(before[0]) / (norm(change) / 0.01), 10), rel=TOLERANCE
    )
    for column in ("undecayed_norm", "undecayed_dot_weight", "weight_decay", "swallowed",
                   "momentum_norm", "variance_sum", "debias1", "debias2"):  # fmt: skip
        assert row[column] is None, column
    assert other["update_norm"] == pytest.approx(0.5 * norm(before[1]), rel=TOLERANCE)
    assert other["grad_norm"] is other["direction_norm"] is other["trust_ratio"] is None
    (info,) = trustlens.open_run(tmp_path / "run").info.optimizers
    assert (info.family, info.variant) == ("", None)


def test_an_unknown_optimizer_without_a_learning_rate(tmp_path):
    class Rateless(SignDescent):
        def __init__(self, params):
            super().__init__(params)
            del self.param_groups[0]["lr"]

        def step(self, closure=None):
            with torch.no_grad():
                for p in self.param_groups[0]["params"]:
                    p.sub_(p.grad)

    (p,) = parameters_of((3, 4))
    row = record_steps(tmp_path / "run", Rateless([p]), [[torch.ones(3, 4)]])[1, "group0.param0"]
    assert row["update_norm"] == pytest.approx(12**0.5, rel=1e-6)
    assert row["learning_rate"] is row["direction_norm"] is row["trust_ratio"] is None


@pytest.mark.parametrize("by_keyword", [False, True])
@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_the_gradient_of_lbfgs_is_that_at_the_weights_before_the_step(by_keyword, search, tmp_path):
    def train(recorded):
        (p,) = parameters_of((3, 4))
        optimizer = torch.optim.LBFGS([p], lr=0.1, max_iter=4, line_search_fn=search)
        seen = []

        def closure():
            optimizer.zero_grad()
            loss = (p.exp() - p).sum()
            loss.backward()
            return loss

        recorder = trustlens.record(optimizer, tmp_path / "run") if recorded else None
        for _ in range(3):
            seen.append(wide(p))
            optimizer.step(closure=closure) if by_keyword else optimizer.step(closure)
        if recorder is not None:
            recorder.close()
        return [*seen, wide(p)]

    seen, plain = train(recorded=True), train(recorded=False)
    assert all((a == b).all() for a, b in zip(seen, plain, strict=True))
    rows = rows_of(tmp_path / "run")
    for t, (before, after) in enumerate(pairwise(seen), start=1):
        row = rows[t, "group0.param0"]
        assert row["weight_norm"] == pytest.approx(norm(before), rel=TOLERANCE)
        assert row["grad_norm"] == pytest.approx(norm(np.exp(before) - 1), rel=TOLERANCE)
        assert row["update_norm"] == pytest.approx(norm(after - before), rel=TOLERANCE)
        assert row["direction_norm"] == pytest.approx(norm(after - before) / 0.1, rel=TOLERANCE)
        assert row["weight_decay"] == 0


def test_asgd_under_a_schedule(tmp_path, monkeypatch):
    """A step uses the rate that the previous step computed, so it is copied before the step."""
    monkeypatch.setattr(snapshots, "SMALL", 0)
    (p,) = parameters_of((40, 30), dtype=torch.float64)
    optimizer = torch.optim.ASGD([p], lr=0.1, lambd=0.1, alpha=0.5, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    seen, rates = [], []
    with trustlens.record(optimizer, tmp_path / "run"):
        for _ in range(5):
            seen.append(wide(p))
            rates.append(optimizer.param_groups[0]["lr"])
            p.grad = torch.randn(40, 30, dtype=torch.float64)
            optimizer.step()
            schedule.step()
    seen.append(wide(p))
    rows = rows_of(tmp_path / "run")
    for t, rate in enumerate(rates, start=1):
        row, change = rows[t, "group0.param0"], seen[t] - seen[t - 1]
        assert row["learning_rate"] == pytest.approx(rate, rel=1e-6)
        assert row["update_norm"] == pytest.approx(norm(change), rel=1e-6)
        assert row["direction_norm"] == pytest.approx(norm(change) / rate, rel=1e-6)
        assert row["undecayed_norm"] == pytest.approx(
            norm(change / rate + 0.1 * seen[t - 1]), rel=1e-6
        )


@pytest.mark.parametrize("variant", LAMB_VARIANTS)
def test_rows_of_lamb_computed_from_its_state_equal_those_from_copied_weights(
    variant, tmp_path, monkeypatch
):
    """For every variant of rate, ratio and decay, and for large, small and zero weights."""
    made = {}
    for way, small in (("undone", -1), ("copied", 1 << 30)):
        monkeypatch.setattr(snapshots, "SMALL", small)
        torch.manual_seed(0)
        parameters = parameters_of((30, 40), (50,), (20, 3))
        torch.nn.init.zeros_(parameters[2])
        options = {"lr": 0.02, "weight_decay": 0.1, **LAMB_VARIANTS[variant], "fused": False}
        optimizer = trustlens.optim.Lamb(parameters, **options)
        grads = [[0.1 * torch.randn(p.shape) for p in parameters] for _ in range(5)]
        made[way] = record_steps(tmp_path / way, optimizer, grads)
    for at, copied in made["copied"].items():
        undone, size = made["undone"][at], copied["weight_norm"] or 1.0
        bounds = {
            "update_dot_weight": 1e-6 * size * (copied["update_norm"] + size),
            "undecayed_dot_weight": 1e-6 * size * copied["undecayed_norm"],
        }
        for column, value in copied.items():
            if column in {"step", "layer"}:
                continue
            if column != "swallowed" and undone[column] is not None:
                bound = bounds.get(column, 1e-6 * size if "update" in column else 0)
                assert undone[column] == pytest.approx(value, rel=2e-5, abs=bound), (at, column)
            else:
                assert column == "swallowed", (at, column)
