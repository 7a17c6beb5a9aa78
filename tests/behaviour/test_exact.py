"""Every recorded number equals its definition, and recording changes no bit of the training."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import trustlens
from tests.support.simulation import (
    CASES,
    compare,
    expected_row,
    norm,
    parameters_of,
    record_steps,
    rows_of,
    sizes_of_products,
    wide,
)

STEPS = 6
GROUPS = ({"lr": 0.02, "weight_decay": 0.1}, {"lr": 0.05, "weight_decay": 0.0})
NO_VARIANCE = {"variance_sum", "surprise", "debias2"}
NO_MOMENTUM = NO_VARIANCE | {"grad_dot_momentum", "momentum_norm", "debias1"}


def nulls_of(name):
    if name in {"SGD", "Lars, no momentum"}:
        return NO_MOMENTUM
    return NO_VARIANCE if name.startswith(("SGD", "Lars")) else set()


# The training: a small network with dropout, and large, small and zero weights.


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(6, 9)
        self.second = torch.nn.Linear(9, 3)
        self.scale = torch.nn.Parameter(torch.tensor(20.0))
        self.idle = torch.nn.Parameter(torch.randn(4))  # its gradient is 0
        self.unused = torch.nn.Parameter(torch.randn(2))  # it has no gradient
        torch.nn.init.zeros_(self.second.bias)
        with torch.no_grad():
            self.first.bias.mul_(1e-3)

    def forward(self, x):
        hidden = torch.nn.functional.dropout(self.first(x).relu(), 0.2)
        return self.second(hidden) * self.scale + 0 * self.idle.sum()


def groups_of(model):
    named = dict(model.named_parameters())
    decayed = [n for n in named if n.endswith("weight") or n == "idle"]
    return [
        {"params": [named[n] for n in named if (n in decayed) == wanted], **options}
        for wanted, options in zip((True, False), GROUPS, strict=True)
    ]


@dataclass
class Seen:
    """Inputs and result of one step, by layer."""

    before: dict[str, np.ndarray]
    grads: dict[str, np.ndarray | None]
    rates: dict[str, float]
    decays: dict[str, float]
    after: dict[str, np.ndarray] = field(default_factory=dict)


def see(model, optimizer):
    groups = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    named = dict(model.named_parameters())
    return Seen(
        {n: wide(p) for n, p in named.items()},
        {n: None if p.grad is None else wide(p.grad) for n, p in named.items()},
        {n: float(groups[id(p)]["lr"]) for n, p in named.items()},
        {n: groups[id(p)]["weight_decay"] for n, p in named.items()},
    )


def train(case, directory: Path | None, steps=STEPS, seed=0):
    """Train with clipped gradients and a schedule; return model, optimizer and observed steps.

    Records into `directory` unless it is None.
    """
    torch.manual_seed(seed)
    model = Net()
    optimizer = case.make(groups_of(model))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    recorder = None
    if directory is not None:
        recorder = trustlens.record(optimizer, directory, model=model, histograms_every=2)
    seen = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(torch.randn(16, 6)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        seen.append(see(model, optimizer))
        optimizer.step()
        seen[-1].after = {n: wide(p) for n, p in model.named_parameters()}
        schedule.step()
        if recorder is not None:
            recorder.log(loss=loss)
    if recorder is not None:
        recorder.close()
    return model, optimizer, seen


def clip_divisor(case, grads):
    if case.clip_inside is None:
        return 1.0
    total = np.sqrt(sum((g * g).sum() for g in grads.values() if g is not None))
    return max(1.0, total / case.clip_inside)


@pytest.mark.parametrize("name", CASES)
def test_every_column_equals_its_definition(name, tmp_path):
    case = CASES[name]
    _, _, seen = train(case, tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    layers = {n: case.layer() for n in seen[0].before}
    nulls = set()
    for t, step in enumerate(seen, start=1):
        divisor = clip_divisor(case, step.grads)
        for n, g in step.grads.items():
            if g is None:
                continue
            before, after = step.before[n], step.after[n]
            stepped = layers[n].step(before, g / divisor, step.rates[n], step.decays[n])
            # The simulation makes the same change as this optimizer, up to the rounding of the
            # weights and of float32's m/√v.
            rounding = 1e-6 * norm(before) + 1e-5 * norm(stepped.change)
            assert norm(after - before - stepped.change) <= rounding, (t, n)
            expected = expected_row(
                before, after, g / divisor, stepped, rate=step.rates[n], eps=case.eps
            )
            products = sizes_of_products(before, after, g / divisor, stepped)
            compare(rows[t, n], expected, products, (t, n))
            nulls |= {column for column, value in expected.items() if value is None}
    assert nulls == nulls_of(name)


def test_the_training_covers_the_cases_it_is_meant_to_cover(tmp_path):
    train(CASES["Lamb"], tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    ratios = [row["trust_ratio"] for row in rows.values() if row["trust_ratio"] is not None]
    assert max(ratios) == 10  # clipped
    assert min(ratios) < 0.1
    assert rows[1, "second.bias"]["trust_ratio"] == 1  # r₁ = 0
    assert rows[1, "first.weight"]["grad_norm"] < 0.11  # clipped
    rates = [rows[t, "first.weight"]["learning_rate"] for t in range(1, STEPS + 1)]
    assert rates == pytest.approx([0.02, 0.02, 0.01, 0.01, 0.005, 0.005])
    assert rows[1, "first.bias"]["learning_rate"] == pytest.approx(0.05)


# State that recording must not change.


def flat_state(optimizer):
    state = optimizer.state_dict()["state"]
    return {(i, key): value for i, of in state.items() for key, value in of.items()}


def random_state():
    return torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002


@pytest.mark.parametrize("name", CASES)
def test_training_is_bit_identical_with_and_without_recording(name, tmp_path):
    plain, plain_optimizer, _ = train(CASES[name], None)
    plain_random = random_state()
    recorded, recorded_optimizer, _ = train(CASES[name], tmp_path / "run")
    recorded_random = random_state()
    for (n, p), (_, q) in zip(plain.named_parameters(), recorded.named_parameters(), strict=True):
        assert torch.equal(p, q), n
        assert (p.grad is None) == (q.grad is None)
        assert p.grad is None or torch.equal(p.grad, q.grad), n
    ours, theirs = flat_state(recorded_optimizer), flat_state(plain_optimizer)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert value is theirs[key] is None or torch.equal(value, theirs[key]), key
    assert torch.equal(recorded_random[0], plain_random[0])
    assert recorded_random[1:] == plain_random[1:]
    assert not recorded_optimizer._optimizer_step_pre_hooks
    assert not recorded_optimizer._optimizer_step_post_hooks


# Other shapes.


@given(
    shapes=st.lists(st.lists(st.integers(1, 4), max_size=4).map(tuple), min_size=1, max_size=4),
    steps=st.integers(1, 4),
    name=st.sampled_from(["AdamW", "Adam, fused", "SGD, nesterov", "Lamb", "Lars"]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=10, deadline=None)
def test_layers_of_any_shape(shapes, steps, name, seed, tmp_path_factory):
    generator = torch.Generator().manual_seed(seed)

    def draw():
        # In float64: a sum that happens to cancel would show float32's rounding.
        return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]

    case, parameters = CASES[name], [torch.nn.Parameter(w) for w in draw()]
    optimizer = case.make([{"params": parameters, "lr": 0.01, "weight_decay": 0.1}])
    grads = [draw() for _ in range(steps)]
    befores, layers = [], [case.layer() for _ in shapes]
    optimizer.register_step_pre_hook(lambda *_: befores.append([wide(p) for p in parameters]))
    rows = record_steps(tmp_path_factory.mktemp("any") / "run", optimizer, grads)
    befores.append([wide(p) for p in parameters])
    for t in range(steps):
        for i, layer in enumerate(layers):
            before, after, g = befores[t][i], befores[t + 1][i], wide(grads[t][i])
            stepped = layer.step(before, g, 0.01, 0.1)
            expected = expected_row(before, after, g, stepped, rate=0.01, eps=case.eps)
            products = sizes_of_products(before, after, g, stepped)
            compare(rows[t + 1, f"group0.param{i}"], expected, products, (t + 1, i))


def test_a_layer_of_many_chunks(tmp_path):
    # Longer than the chunks of the sums, and not a multiple of their length.
    (p,) = parameters_of((1_000_003,))
    before, g = wide(p), torch.randn(1_000_003)
    optimizer = CASES["AdamW"].make([{"params": [p], "lr": 0.01, "weight_decay": 0.1}])
    row = record_steps(tmp_path / "run", optimizer, [[g]])[1, "group0.param0"]
    stepped = CASES["AdamW"].layer().step(before, wide(g), 0.01, 0.1)
    expected = expected_row(before, wide(p), wide(g), stepped, rate=0.01, eps=1e-8)
    products = sizes_of_products(before, wide(p), wide(g), stepped)
    compare(row, expected, products, "large")
