"""Recording never synchronizes with an accelerator. Most of these tests need none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import trustlens
from tests.support.compiled import needs_compiler
from trustlens.recording.hooks import optimizer as hooks

READS = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "unique", "_unique2"}


class CountingReads(TorchDispatchMode):
    """Counts the operations that read a number on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads += function.overloadpacket.__name__ in READS
        return function(*args, **(kwargs or {}))


def reads_a_step(layers: int, directory: Path | None) -> float:
    """Return the number of reads per step, after the first four steps."""
    parameters = [torch.nn.Parameter(torch.ones(300)) for _ in range(layers)]
    optimizer = torch.optim.AdamW(parameters, lr=0.01, fused=True)
    recorder = None if directory is None else trustlens.record(optimizer, directory)
    with CountingReads() as counting:
        for step in range(8):
            for p in parameters:
                p.grad = torch.ones_like(p)
            optimizer.step()
            if step == 3:
                counting.reads = 0
    if recorder is not None:
        recorder.close()
    return counting.reads / 4


@needs_compiler
def test_the_number_of_reads_does_not_grow_with_the_layers(tmp_path: Path) -> None:
    added = [
        reads_a_step(layers, tmp_path / str(layers)) - reads_a_step(layers, None)
        for layers in (2, 40)
    ]
    assert added[0] == added[1] <= 4  # the step count of one layer for all, on the CPU


def test_a_step_captured_in_a_cuda_graph_is_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([p], lr=0.5)
    captured = iter([False, False, True, True, False])
    monkeypatch.setattr(hooks, "_is_captured", lambda _: next(captured))
    with trustlens.record(optimizer, tmp_path / "run") as recorder:
        for _ in range(5):
            p.grad = torch.ones(3)
            optimizer.step()
    assert p.tolist() == [-1.5] * 3
    assert recorder.step == 3
    assert trustlens.open_run(tmp_path / "run").matrix("nonfinite").index.tolist() == [1, 2, 3]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "CUDA graph" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", [{}, {"fused": True}, {"capturable": True}], ids=str)
def test_recording_on_a_gpu_never_synchronizes(options: dict[str, Any], tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Linear(128, 8)).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, **options)
    batch = torch.randn(16, 64, device="cuda")
    with trustlens.record(optimizer, tmp_path / "run", histograms_every=4) as recorder:
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(12):
                optimizer.zero_grad()
                loss = model(batch).square().mean()
                loss.backward()
                optimizer.step()
                recorder.log(loss=loss)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    run = trustlens.open_run(tmp_path / "run")
    assert run.matrix("nonfinite").index.tolist() == list(range(1, 13))
    assert run.info.recording.statistics == "cuda"
    assert run.info.recording.stopped is None
