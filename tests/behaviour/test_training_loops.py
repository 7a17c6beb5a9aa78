"""Common training loops: each step of the optimizer is recorded once, and nothing else is."""

from __future__ import annotations

import pytest
import torch
from torch.optim.adamw import adamw

import trustlens
from tests.support.simulation import TOLERANCE, norm, parameters_of, rows_of, wide
from trustlens.element_bins import element_counts
from trustlens.recording.measuring.snapshots import SMALL


def test_accumulated_gradients_are_one_step(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    batches = torch.randn(8, 5, 6)
    totals = []
    with trustlens.record(optimizer, tmp_path / "run", model=model):
        for i, batch in enumerate(batches, start=1):
            (model(batch).square().mean() / 4).backward()
            if i % 4 == 0:
                totals.append(wide(model.weight.grad))
                optimizer.step()
                optimizer.zero_grad()
    rows = rows_of(tmp_path / "run")
    assert [t for t, layer in rows if layer == "weight"] == [1, 2]
    for t, total in enumerate(totals, start=1):
        assert rows[t, "weight"]["grad_norm"] == pytest.approx(norm(total), rel=TOLERANCE)


def test_the_recorded_gradient_is_the_clipped_one(tmp_path):
    (p,) = parameters_of((30, 4))
    optimizer = torch.optim.SGD([p], lr=0.1)
    with trustlens.record(optimizer, tmp_path / "run"):
        p.grad = torch.full((30, 4), 3.0)
        torch.nn.utils.clip_grad_norm_([p], 0.5)
        optimizer.step()
    row = rows_of(tmp_path / "run")[1, "group0.param0"]
    assert row["grad_norm"] == pytest.approx(0.5, rel=1e-5)
    assert row["update_norm"] == pytest.approx(0.05, rel=1e-5)


@pytest.mark.parametrize("shape", [(3, 4), (SMALL + 1,)])
def test_a_change_outside_the_optimizer_is_not_a_step(shape, tmp_path):
    """Weights that change between two steps show in r₁, but in no update."""
    (p,) = parameters_of(shape)
    optimizer = torch.optim.AdamW([p], lr=0.01, betas=(0.9, 0.99))
    before, after = [], []

    def step():
        p.grad = torch.randn(shape)
        before.append(wide(p))
        optimizer.step()
        after.append(wide(p))

    with trustlens.record(optimizer, tmp_path / "run"):
        step()
        step()
        m, v, t = torch.zeros(shape), torch.zeros(shape), torch.tensor(0.0)
        adamw([p.detach()], [torch.ones(shape)], [m], [v], [], [t], amsgrad=False, beta1=0.9,
              beta2=0.99, lr=0.5, weight_decay=0.0, eps=1e-8, maximize=False)  # fmt: skip
        step()
    rows = rows_of(tmp_path / "run")
    assert [t for t, _ in rows] == [1, 2, 3]
    for t in (1, 2, 3):
        row, change = rows[t, "group0.param0"], after[t - 1] - before[t - 1]
        assert row["weight_norm"] == pytest.approx(norm(before[t - 1]), rel=TOLERANCE)
        assert row["update_norm"] == pytest.approx(norm(change), rel=TOLERANCE)
    assert norm(before[2] - after[1]) > 5 * norm(after[2] - before[2])


@pytest.mark.parametrize("shape", [(3, 4), (SMALL + 1,)])
def test_changes_by_other_hooks_are_not_part_of_the_step(shape, tmp_path):
    (p,) = parameters_of(shape)
    optimizer = torch.optim.AdamW([p], lr=0.01)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(wide(p)))
    optimizer.register_step_post_hook(lambda *_: (seen.append(wide(p)), p.data.clamp_(-0.1, 0.1)))
    with trustlens.record(optimizer, tmp_path / "run"):
        for _ in range(3):
            p.grad = torch.randn(shape)
            optimizer.step()
    rows = rows_of(tmp_path / "run")
    for t, (before, after) in enumerate(zip(seen[::2], seen[1::2], strict=True), start=1):
        row = rows[t, "group0.param0"]
        assert row["weight_norm"] == pytest.approx(norm(before), rel=TOLERANCE)
        assert row["update_norm"] == pytest.approx(norm(after - before), rel=TOLERANCE)
    assert norm(seen[2]) < 0.5 * norm(seen[1])


def test_a_group_added_during_the_run_and_a_schedule(tmp_path):
    first, second = parameters_of((3, 4), (5,))
    optimizer = torch.optim.AdamW([first], lr=0.1, weight_decay=0.2)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    with trustlens.record(optimizer, tmp_path / "run"):
        for t in range(4):
            if t == 2:
                optimizer.add_param_group({"params": [second], "lr": 1.0, "weight_decay": 0.0})
                schedule.base_lrs.append(1.0)
            for p in (first, second):
                p.grad = torch.ones_like(p)
            optimizer.step()
            optimizer.param_groups[0]["weight_decay"] += 0.1
            schedule.step()
    rows = rows_of(tmp_path / "run")
    of_first = [rows[t, "group0.param0"] for t in (1, 2, 3, 4)]
    assert [row["learning_rate"] for row in of_first] == pytest.approx([0.1, 0.05, 0.025, 0.0125])
    assert [row["weight_decay"] for row in of_first] == pytest.approx([0.2, 0.3, 0.4, 0.5])
    of_second = {t: row for (t, layer), row in rows.items() if layer == "group1.param0"}
    assert list(of_second) == [3, 4]
    assert [row["learning_rate"] for row in of_second.values()] == pytest.approx([1.0, 0.5])
    assert of_second[3]["debias1"] == pytest.approx(10)  # its first step


def test_element_histograms_of_a_large_layer_are_of_the_weights_before_the_step(tmp_path):
    """In steps without histograms its weights are recovered from the state, not copied."""
    shape = (SMALL + 1,)
    (p,) = parameters_of(shape)
    optimizer = torch.optim.AdamW([p], lr=0.1)
    expected = {}
    with trustlens.record(optimizer, tmp_path / "run", histograms_every=2):
        for t in (1, 2, 3):
            g, before = torch.randn(shape), p.detach().clone()
            p.grad = g.clone()
            optimizer.step()
            expected[t] = {"weight": before, "gradient": g, "update": p.detach() - before}
    counted = trustlens.open_run(tmp_path / "run").histograms()
    assert counted["step"].unique().tolist() == [1, 3]
    for row in counted.itertuples():
        assert row.counts == element_counts(expected[row.step][row.quantity].numpy())
