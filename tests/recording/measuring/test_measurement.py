"""Both paths build the same measurement, and each layer gets its own numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.compiled import needs_compiler
from trustlens.optim import Lamb, Lars
from trustlens.recording.measuring import measurement as module
from trustlens.recording.measuring.cached_plan import CachedPlan
from trustlens.recording.measuring.layers import find_layers
from trustlens.recording.measuring.measurement import (
    DEVICE_COLUMNS,
    HOST_COLUMNS,
    KNOWN,
    Measurement,
    SharedNumbers,
    build_measurement,
    send_to_host,
)
from trustlens.recording.measuring.probe import OptimizerProbe
from trustlens.recording.optimizers import Direction
from trustlens.recording.statistics import SUMS
from trustlens.trust_ratio import RatioRule, lamb_ratio

SHAPES = ((40, 20), (300,), (7,), (20, 30))
STEPS = 6

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1),
    "SGD, momentum": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9),
    "RMSprop": lambda groups: torch.optim.RMSprop(groups, lr=0.01),
    "Lamb": lambda groups: Lamb(groups, lr=0.01, weight_decay=0.1),
    "Lars": lambda groups: Lars(groups, lr=0.01, weight_decay=0.1),
}


def measured_steps(
    make: Callable[[Any], torch.optim.Optimizer], *, missing: bool, histograms: bool
) -> list[list[Measurement[Tensor]]]:
    """Return what a probe measures in each step of a short training."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    optimizer = make([{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.002}])
    probe = OptimizerProbe(optimizer)
    probe.follow([(10 + i, each) for i, each in enumerate(find_layers([optimizer], None))])
    steps: list[list[Measurement[Tensor]]] = []
    for step in range(STEPS):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator)
        if missing and step == STEPS - 2:
            parameters[1].grad = None
        probe.before(((optimizer,), {}), measure=True, histograms=histograms)
        optimizer.step()
        steps.append(probe.after(histograms=histograms))
    return steps


def joined(parts: Sequence[Measurement[Tensor]]) -> dict[str, Any]:
    """Return the fields of all parts of a step, joined in the order of the layers."""
    order = np.argsort(np.concatenate([part.layers for part in parts]))
    columns: dict[str, Any] = {}
    for name in (field.name for field in fields(Measurement)):
        values = [getattr(part, name) for part in parts]
        if name == "device" and any(value is not None for value in values):
            # None if every number is on the host.
            nans = [np.full((len(part.layers), len(DEVICE_COLUMNS)), np.nan) for part in parts]
            values = [
                nan if value is None else value for value, nan in zip(values, nans, strict=True)
            ]
        if any(value is None or len(value) == 0 for value in values):
            assert all(value is None or len(value) == 0 for value in values), name
            continue
        columns[name] = np.concatenate([np.asarray(value) for value in values])[order]
    return columns


@needs_compiler
@pytest.mark.parametrize("histograms", [False, True])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_both_paths_build_equal_measurements(
    name: str, missing: bool, histograms: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, used = CachedPlan.measure, []

    def counting(self: CachedPlan, **options: Any) -> Any:
        measured = measure(self, **options)
        used.append(measured is not None)
        return measured

    monkeypatch.setattr(CachedPlan, "measure", counting)
    by_plan = measured_steps(OPTIMIZERS[name], missing=missing, histograms=histograms)
    if not (histograms and name in {"Lamb", "Lars"}):  # their fused step counts no elements
        assert used.count(True) >= 2
    monkeypatch.setattr(CachedPlan, "of", lambda *_: None)
    by_reading = measured_steps(OPTIMIZERS[name], missing=missing, histograms=histograms)
    for one, other in zip(by_plan, by_reading, strict=True):
        planned, read = joined(one), joined(other)
        assert planned.keys() == read.keys()
        assert planned["layers"].tolist() == [10, 11, 12, 13]
        assert planned["sums"].shape == (len(SHAPES), len(SUMS))
        for field, values in planned.items():
            np.testing.assert_array_equal(values, read[field], err_msg=field)
            assert values.dtype == read[field].dtype


def on_device(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def test_each_layer_gets_the_shared_numbers_assigned_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tensors count as being on an accelerator here, so that the test needs none."""
    monkeypatch.setattr(module, "is_on_accelerator", lambda value: isinstance(value, Tensor))
    rule = RatioRule.of(lamb_ratio, {})
    known = tuple(i % 2 == 0 for i in range(len(KNOWN)))
    shared = [
        SharedNumbers(Direction(debias1=2.0, debias2=None, decay=0.25), 0.5, known),
        SharedNumbers(
            Direction(debias1=on_device(3, 4), debias2=on_device(5), decay=None, ratio_rule=rule),
            on_device(0.125),
            known[::-1],
        ),
        SharedNumbers(None, 0.75, (False,) * len(KNOWN)),
    ]
    made = build_measurement(
        np.arange(4, dtype=np.int32),
        np.ones(4),
        shared,
        np.array([1, 0, 1, 2]),
        ratios=[on_device(7)[0], None, on_device(8)[0], None],
        sums=torch.zeros(4, len(SUMS), dtype=torch.float64),
    )
    nan = float("nan")
    # the numbers on the host, then those on the device
    assert HOST_COLUMNS == ("debias1", "debias2", "learning_rate", "weight_decay")
    np.testing.assert_array_equal(
        made.host,
        [[nan, nan, nan, nan], [2, nan, 0.5, 0.25], [nan, nan, nan, nan], [nan, nan, 0.75, nan]],
    )
    assert DEVICE_COLUMNS == ("trust_ratio", "learning_rate", "debias1", "debias2")
    assert made.device is not None
    np.testing.assert_array_equal(
        made.device,
        [[7, 0.125, 3, 5], [nan, nan, nan, nan], [8, 0.125, 4, 5], [nan, nan, nan, nan]],
    )
    assert made.known.tolist() == [list(known[::-1]), list(known), list(known[::-1]), [False] * 8]
    assert list(made.rules) == [rule, None, rule, None]


def test_sending_keeps_every_field() -> None:
    made = build_measurement(
        np.arange(2, dtype=np.int32),
        np.ones(2),
        [SharedNumbers(Direction(), 0.5, (True,) * len(KNOWN))],
        np.zeros(2, np.int64),
        ratios=[torch.tensor(1.0), torch.tensor(2.0)],
        sums=torch.rand(2, len(SUMS), dtype=torch.float64),
        counts=torch.ones(2, 3, 2048, dtype=torch.int64),
    )
    sent = send_to_host(made)
    assert sent.nbytes == made.nbytes > made.sums.nbytes
    for field in fields(Measurement):
        one, other = getattr(made, field.name), getattr(sent, field.name)
        if isinstance(one, Tensor):
            other = other.open()
        np.testing.assert_array_equal(one, other)
