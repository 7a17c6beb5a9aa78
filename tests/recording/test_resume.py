"""Read the step to continue after, from optimizers' states and from the run's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import trustlens
from trustlens.recording import resume
from trustlens.recording.resume import read_history
from trustlens.recording.step_counter import Progress
from trustlens.store.run_info import read_info


def _optimizer_with_count(where: str, step: Any) -> torch.optim.Optimizer:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    place = {"state": optimizer.state, "group": optimizer.param_groups[0]}
    place.get(where, optimizer.state[parameter])["step"] = step  # type: ignore[index]
    return optimizer


@pytest.mark.parametrize("where", ["layer", "group", "state"])
@pytest.mark.parametrize(
    ("kept", "count"), [(7, 7), (torch.tensor(7.0), 7), (torch.ones(2), None), (None, None)]
)
def test_own_count_finds_the_count_in_state_or_groups(where: str, kept: Any, count: Any) -> None:
    optimizer = _optimizer_with_count(where, kept)
    assert resume.own_count(optimizer) == count
    assert resume.has_state(optimizer) == (where != "group")


def test_a_count_on_an_accelerator_is_read_only_with_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    optimizer = _optimizer_with_count("layer", torch.tensor(7.0))
    assert resume.progress_of(optimizer, wait=False) == Progress(7, has_state=True)
    monkeypatch.setattr(resume, "is_on_accelerator", lambda value: isinstance(value, torch.Tensor))
    assert resume.progress_of(optimizer, wait=False) == Progress(None, has_state=True)
    assert resume.progress_of(optimizer, wait=True) == Progress(7, has_state=True)


def _recorded(directory: Path, **options: Any) -> None:
    """Record 9 steps of one optimizer and 3 of another; the gradients of step 5 overflow."""
    layers = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    frequent, rare = (torch.optim.AdamW([layer]) for layer in layers)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with trustlens.record([frequent, rare], directory, **options):
        for step in range(1, 10):
            for optimizer, layer in ((frequent, layers[0]), (rare, layers[1])):
                if optimizer is frequent or step % 3 == 0:
                    optimizer.zero_grad()
                    factor = float("inf") if step == 5 else 1.0
                    scaler.scale(layer.square().sum() * factor).backward()
                    scaler.step(optimizer)
                    scaler.update()


@pytest.mark.parametrize(
    ("every", "last_of_each"),
    [(1, (9, 3)), (2, (9, 9))],  # with every=2, `layers` does not contain the last step of each
)
def test_the_history_of_a_run(every: int, last_of_each: tuple[int, ...], tmp_path: Path) -> None:
    _recorded(tmp_path, every=every)
    history = read_history(tmp_path, read_info(tmp_path), 2)
    assert (history.last, history.skipped, history.steps_before) == (9, (5,), (0, 0))
    assert history.last_of_each == last_of_each
    times = trustlens.open_run(tmp_path).steps()["time"]
    assert history.last_time == times.max().value // 1000


def test_the_history_has_as_many_entries_as_there_are_optimizers_now(tmp_path: Path) -> None:
    _recorded(tmp_path)
    info = read_info(tmp_path).change_recording(optimizer_steps_before=(4,))
    assert read_history(tmp_path, info, 1).last_of_each == (9,)
    more = read_history(tmp_path, info, 3)
    assert (more.last_of_each, more.steps_before) == ((9, 3, 0), (4, 0, 0))


def test_the_history_of_a_run_without_steps_is_empty(tmp_path: Path) -> None:
    with trustlens.record(torch.optim.SGD([nn.Parameter(torch.ones(2))]), tmp_path):
        pass
    history = read_history(tmp_path, read_info(tmp_path), 1)
    assert (history.last, history.last_of_each, history.skipped) == (0, (0,), ())
    assert history.last_time == 0
