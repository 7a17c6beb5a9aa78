"""Plans of layers whose numbers lie on a device: run by `test_cuda.py`, as `cuda_checks.py` is.

Without a GPU the numbers lie on the CPU, and reading one fails.
"""

from __future__ import annotations

import inspect
from typing import Any

import pandas as pd
import pytest
import torch

import trustlens
from recording.measuring.test_cached_plan import (
    Training,
    a_checkpoint_is_loaded,
    a_state_is_another_tensor,
    a_state_moves_elsewhere,
    nothing,
    recorded,
    some_gradients_are_missing,
    the_rate_changes,
)
from recording.optimizers.test_torch_optim import on_a_device
from support.devices import DEVICE
from trustlens.recording.measuring.cached_plan import CachedPlan
from trustlens.recording.statistics.cpu_backend import CpuBackend
from trustlens.recording.statistics.triton_backend import TritonBackend


def rate() -> torch.Tensor:
    return torch.tensor(0.01, device=DEVICE)


OPTIMIZERS: dict[str, Any] = {
    "AdamW, fused": lambda groups: torch.optim.AdamW(groups, lr=0.01, fused=True),
    "AdamW, fused, its rate too": lambda groups: torch.optim.AdamW(groups, lr=rate(), fused=True),
    "AdamW, capturable": lambda groups: torch.optim.AdamW(groups, lr=0.01, capturable=True),
    "Adam, amsgrad": lambda groups: torch.optim.Adam(
        groups, lr=0.01, amsgrad=True, fused=True, weight_decay=0.1
    ),
}
# Their directions are made of tensors that are made for the step, or numbers of a layer's own.
NEVER_PLANNED: dict[str, Any] = {
    "RAdam": lambda groups: torch.optim.RAdam(groups, lr=0.01, capturable=True),
    "NAdam": lambda groups: torch.optim.NAdam(groups, lr=0.01, capturable=True),
}
CASES = [
    *((name, some_gradients_are_missing) for name in OPTIMIZERS),
    *(("AdamW, fused", disturb) for disturb in (
        nothing, a_state_moves_elsewhere, a_state_is_another_tensor, a_checkpoint_is_loaded,
        the_rate_changes,
    )),
]  # fmt: skip


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of how many layers each call of `CachedPlan.measure` made rows."""
    measure, told = CachedPlan.measure, []

    def telling(self: CachedPlan, **options: Any) -> Any:
        measured = measure(self, **options)
        told.append(0 if measured is None else len(measured.layers))
        return measured

    monkeypatch.setattr(CachedPlan, "measure", telling)
    if DEVICE.type == "cpu":
        monkeypatch.setattr(CpuBackend, "if_possible", lambda: TritonBackend.if_possible(DEVICE))
        on_a_device(monkeypatch)
        for kind in (torch.optim.AdamW, torch.optim.RAdam, torch.optim.NAdam):
            module = inspect.getmodule(inspect.unwrap(kind.step))
            monkeypatch.setattr(module, "_get_capturable_supported_devices", lambda **_: ["cpu"])
    return told


@pytest.mark.parametrize(("name", "disturb"), CASES)
def test_the_rows_are_those_of_looking_at_each_layer(name, disturb, planned, tmp_path):
    make = OPTIMIZERS[name]
    rows = recorded(Training(make, torch.float32, DEVICE), tmp_path / "planned", disturb)
    assert sum(n >= 4 for n in planned) >= 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CachedPlan, "of", lambda *_, **__: None)
        looked_at = recorded(Training(make, torch.float32, DEVICE), tmp_path / "looked at", disturb)
    # Powers of many counts at once are rounded otherwise than those of one.
    pd.testing.assert_frame_equal(rows, looked_at, rtol=1e-5)
    assert rows["debias1"].notna().any()
    assert rows["learning_rate"].notna().all()


def test_elements_are_counted_by_a_plan(planned, tmp_path):
    training = Training(OPTIMIZERS["AdamW, fused"], torch.float32, DEVICE)
    recorded(training, tmp_path / "planned", nothing, 1)
    assert sum(n >= 4 for n in planned) >= 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CachedPlan, "of", lambda *_, **__: None)
        again = Training(OPTIMIZERS["AdamW, fused"], torch.float32, DEVICE)
        recorded(again, tmp_path / "looked at", nothing, 1)
    one, other = (
        trustlens.open_run(tmp_path / name).histograms() for name in ("planned", "looked at")
    )
    pd.testing.assert_frame_equal(one, other)


@pytest.mark.parametrize("name", NEVER_PLANNED)
def test_what_a_layer_has_of_its_own_is_looked_at(name, planned, tmp_path):
    recorded(Training(NEVER_PLANNED[name], torch.float32, DEVICE), tmp_path / "run", nothing)
    assert not any(planned)
