"""Inputs that once stopped the recording, slowed it down or were not checked."""

from __future__ import annotations

import pytest
import torch

import trustlens
from trustlens.errors import UsageError
from trustlens.recording.measuring.layers import find_layers
from trustlens.recording.measuring.probe import OptimizerProbe
from trustlens.recording.writing.records import MetricRecord
from trustlens.recording.writing.tables import tables


def test_momentum_of_sparse_gradients_is_recorded(tmp_path):
    embedding = torch.nn.Embedding(10, 4, sparse=True)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.1, momentum=0.9)
    before, updates = embedding.weight.detach().clone(), []
    with trustlens.record(optimizer, tmp_path / "run"):
        for _ in range(3):
            optimizer.zero_grad()
            embedding(torch.tensor([1, 2, 2])).sum().backward()
            optimizer.step()
            updates.append((embedding.weight.detach() - before).norm().item())
            before = embedding.weight.detach().clone()
    rows = trustlens.open_run(tmp_path / "run").layers()
    assert rows["update_norm"].tolist() == pytest.approx(updates, rel=1e-6)
    assert rows["direction_norm"].tolist() == pytest.approx([u / 0.1 for u in updates], rel=1e-6)


def test_steps_inside_and_outside_inference_mode(tmp_path):
    small, large = (torch.nn.Parameter(torch.ones(n)) for n in (3, 20_000))
    optimizer = torch.optim.SGD([small, large], lr=0.1)
    with trustlens.record(optimizer, tmp_path / "run"):
        for step in range(4):
            small.grad, large.grad = torch.ones(3), torch.ones(20_000)
            with torch.inference_mode(mode=step % 2 == 0):
                optimizer.step()
    steps = trustlens.open_run(tmp_path / "run").layers()["step"]
    assert steps.tolist() == [1, 1, 2, 2, 3, 3, 4, 4]


def test_many_metrics_keep_their_names():
    record = MetricRecord(1, {f"metric {i}": float(i) for i in range(20_000)})
    made = tables([record] * 3, [])["metrics"]
    assert made["value"].to_pylist() == [record.values[name] for name in made["name"].to_pylist()]


def test_measuring_allocates_no_tensors_of_the_whole_models_size():
    # Adafactor's direction is a float64 tensor. It may exist for one layer at a time only.
    parameters = [torch.nn.Parameter(torch.ones(1 << 10, 1 << 10)) for _ in range(6)]
    optimizer = torch.optim.Adafactor(parameters, lr=0.01)
    probe = OptimizerProbe(optimizer)
    probe.follow([(i, layer) for i, layer in enumerate(find_layers([optimizer], None))])
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    probe.before(((optimizer,), {}), measure=True, histograms=False)
    probe._snapshots.follow([layer for _, layer in probe._layers])  # do not count the copies
    with torch.no_grad(), torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        probe.after(histograms=False)
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    assert (
        0 < most < 6 * 4 * (1 << 20) * 1.7
    )  # it would be 17 bytes an element for all layers at once


@pytest.mark.parametrize("own", [["a"], [-3], [None], [True], [2**70], 3])
def test_a_checkpoint_with_invalid_steps_is_refused(tmp_path, own):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1)
    with (
        trustlens.record(optimizer, tmp_path / "run") as recorder,
        pytest.raises(UsageError, match="load_state_dict of a recorder got"),
    ):
        recorder.load_state_dict({"step": 1, "own": own})
