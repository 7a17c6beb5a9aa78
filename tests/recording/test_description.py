"""Contents of ``run.json`` for new and resumed runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import trustlens
from trustlens.errors import UsageError
from trustlens.recording.description import (
    describe_optimizer,
    describe_resumed,
    describe_run,
    json_ready,
)
from trustlens.store.run_info import LayerInfo, RecordingInfo, RunInfo


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ({1: (2, None), "a": [True, 0.5]}, {"1": [2, None], "a": [True, 0.5]}),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (torch.tensor([2.0]), 2.0),
        (float("nan"), "nan"),
        (torch.tensor(float("inf")), "inf"),
        (Path("x"), "x"),
        (np.complex64(1), "(1+0j)"),
    ],
)
def test_json_ready_converts_values_to_json_types(value: Any, stored: Any) -> None:
    ready = json_ready(value)
    assert ready == stored
    assert json.loads(json.dumps(ready, allow_nan=False)) == stored


def test_the_groups_of_an_optimizer_are_described_without_their_parameters() -> None:
    layers = [("w", nn.Parameter(torch.ones(2))), ("b", nn.Parameter(torch.ones(2)))]
    optimizer = torch.optim.SGD(
        [{"params": layers[:1]}, {"params": layers[1:], "lr": torch.tensor(0.5)}], lr=0.1
    )
    described = describe_optimizer(optimizer, "SGD", None)
    assert (described.name, described.family) == ("torch.optim.sgd.SGD", "SGD")
    assert [group["lr"] for group in described.groups] == [0.1, 0.5]
    assert all({"params", "param_names"}.isdisjoint(group) for group in described.groups)


def _layer(name: str, *shape: int) -> LayerInfo:
    return LayerInfo(name, shape, "float32")


def _run(name: str, *layers: LayerInfo, **recording: Any) -> RunInfo:
    return describe_run(name, [], layers, {"of": name}, RecordingInfo(**recording))


def test_a_new_run_stores_the_versions_of_trustlens_and_torch() -> None:
    info = _run("new")
    assert info.versions["trustlens"] == trustlens.__version__
    assert info.versions["torch"] == torch.__version__
    assert info.closed is None


def test_a_resumed_run_keeps_its_creation_time_dropped_count_and_old_layers() -> None:
    old = _run("old", _layer("a", 2), _layer("b", 3), every=1, dropped=4, stopped="an error")
    old = replace(old, created="2026-01-01T00:00:00+00:00", closed="2026-01-02T00:00:00+00:00")
    new = _run("new", _layer("c", 1), _layer("b", 3), every=5)
    described = describe_resumed(Path("run"), old, new, keep=["config"])
    assert (described.name, described.config) == ("new", {"of": "old"})
    assert (described.created, described.closed) == (old.created, None)
    assert [layer.name for layer in described.layers] == ["c", "b", "a"]
    recording = described.recording
    assert (recording.every, recording.dropped, recording.stopped) == (5, 4, None)


def test_a_layer_of_another_shape_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'b' of shape \[3\], and here it has \[3, 1\]; give"):
        describe_resumed(
            Path("run"), _run("old", _layer("b", 3)), _run("new", _layer("b", 3, 1)), keep=[]
        )
