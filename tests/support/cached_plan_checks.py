"""Cached plans of layers whose numbers are on a device. `test_triton_backend.py` runs these tests.

Without a GPU the numbers are on the CPU, and reading one fails.
"""

from __future__ import annotations

import inspect
from typing import Any

import pandas as pd
import pytest
import torch

import trustlens
from tests.recording.measuring.test_cached_plan import (
    Training,
    a_checkpoint_is_loaded,
    a_state_tensor_is_replaced,
    no_change,
    recorded,
    some_gradients_are_missing,
    states_get_new_addresses,
    the_rate_changes,
)
from tests.recording.optimizers.test_torch_optim import as_if_on_a_device
from tests.support.devices import DEVICE
from trustlens.recording.measuring.cached_plan import CachedPlan
from trustlens.recording.statistics.cpu_backend import CpuBackend
from trustlens.recording.statistics.triton_backend import TritonBackend


def rate() -> torch.Tensor:
    return torch.tensor(0.01, device=DEVICE)


OPTIMIZERS: dict[str, Any] = {
    "AdamW, fused": lambda groups: torch.optim.AdamW(groups, lr=0.01, fused=True),
    "AdamW, fused, tensor rate": lambda groups: torch.optim.AdamW(groups, lr=rate(), fused=True),
    "AdamW, capturable": lambda groups: torch.optim.AdamW(groups, lr=0.01, capturable=True),
    "Adam, amsgrad": lambda groups: torch.optim.Adam(
        groups, lr=0.01, amsgrad=True, fused=True, weight_decay=0.1
    ),
}
# Their directions use tensors that are made for one step, or numbers that layers do not share.
NEVER_PLANNED: dict[str, Any] = {
    "RAdam": lambda groups: torch.optim.RAdam(groups, lr=0.01, capturable=True),
    "NAdam": lambda groups: torch.optim.NAdam(groups, lr=0.01, capturable=True),
}
CASES = [
    *((name, some_gradients_are_missing) for name in OPTIMIZERS),
    *(("AdamW, fused", disturb) for disturb in (
        no_change, states_get_new_addresses, a_state_tensor_is_replaced, a_checkpoint_is_loaded,
        the_rate_changes,
    )),
]  # fmt: skip


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For each call of `CachedPlan.measure`, the number of layers that it measured."""
    measure, measured_layers = CachedPlan.measure, []

    def observed(self: CachedPlan, **options: Any) -> Any:
        measured = measure(self, **options)
        measured_layers.append(0 if measured is None else len(measured.layers))
        return measured

    monkeypatch.setattr(CachedPlan, "measure", observed)
    if DEVICE.type == "cpu":
        monkeypatch.setattr(CpuBackend, "if_possible", lambda: TritonBackend.if_possible(DEVICE))
        as_if_on_a_device(monkeypatch)
        for kind in (torch.optim.AdamW, torch.optim.RAdam, torch.optim.NAdam):
            module = inspect.getmodule(inspect.unwrap(kind.step))
            monkeypatch.setattr(module, "_get_capturable_supported_devices", lambda **_: ["cpu"])
    return measured_layers


@pytest.mark.parametrize(("name", "disturb"), CASES)
def test_a_plan_gives_the_same_rows_as_reading_each_layer(name, disturb, planned, tmp_path):
    make = OPTIMIZERS[name]
    rows = recorded(Training(make, torch.float32, DEVICE), tmp_path / "planned", disturb)
    assert sum(n >= 4 for n in planned) >= 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CachedPlan, "of", lambda *_, **__: None)
        read_one_by_one = recorded(
            Training(make, torch.float32, DEVICE), tmp_path / "read", disturb
        )
    # Powers of many counts at once are rounded differently than those of one count.
    pd.testing.assert_frame_equal(rows, read_one_by_one, rtol=1e-5)
    assert rows["debias1"].notna().any()
    assert rows["learning_rate"].notna().all()


def test_a_plan_counts_elements(planned, tmp_path):
    training = Training(OPTIMIZERS["AdamW, fused"], torch.float32, DEVICE)
    recorded(training, tmp_path / "planned", no_change, 1)
    assert sum(n >= 4 for n in planned) >= 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CachedPlan, "of", lambda *_, **__: None)
        again = Training(OPTIMIZERS["AdamW, fused"], torch.float32, DEVICE)
        recorded(again, tmp_path / "read", no_change, 1)
    one, other = (trustlens.open_run(tmp_path / name).histograms() for name in ("planned", "read"))
    pd.testing.assert_frame_equal(one, other)


@pytest.mark.parametrize("name", NEVER_PLANNED)
def test_layers_that_share_no_numbers_are_read_in_each_step(name, planned, tmp_path):
    recorded(Training(NEVER_PLANNED[name], torch.float32, DEVICE), tmp_path / "run", no_change)
    assert not any(planned)
