"""Find the last step of a resumed run, from its files and its optimizers' states."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from trustlens.recording.optimizers import is_on_accelerator
from trustlens.recording.step_counter import History, Progress
from trustlens.store.reader import read_table
from trustlens.store.run_info import RunInfo


def read_history(directory: Path, info: RunInfo, optimizers: int) -> History:
    """Return which steps a run has recorded, according to its files.

    Parameters
    ----------
    directory : Path
        The run's directory on this machine.
    info : RunInfo
        Contents of ``run.json``.
    optimizers : int
        Number of optimizers with which the run continues.

    Raises
    ------
    RunError
        If a file is damaged.
    """
    steps = read_table(directory, "steps")
    last = max(steps["step"].to_pylist(), default=0)
    last_of_each = [last] * optimizers
    if optimizers > 1 and info.recording.every == 1:
        # An optimizer may have done fewer steps than the run: read its last step from `layers`.
        # If the process was killed, `layers` may have rows of a step that is missing in `steps`;
        # such a step does not count.
        rows = _last_rows(directory, info, optimizers)
        last_of_each = [min(step, last) for step in rows]
    before = (*info.recording.optimizer_steps_before, *[0] * optimizers)
    return History(
        last=last,
        last_of_each=tuple(last_of_each),
        skipped=tuple(sorted(steps.filter(steps["skipped"])["step"].to_pylist())),
        steps_before=before[:optimizers],
        last_time=max(steps["time"].cast("int64").to_pylist(), default=0),
    )


def _last_rows(directory: Path, info: RunInfo, optimizers: int) -> list[int]:
    """Return, for each optimizer, the last step with rows of its layers in the table ``layers``.

    The step is 0 for an optimizer without rows.
    """
    rows = read_table(directory, "layers", ["step", "layer"])
    lasts = rows.group_by("layer").aggregate([("step", "max")])
    last = dict(zip(lasts["layer"].to_pylist(), lasts["step_max"].to_pylist(), strict=True))
    own = [(layer.optimizer, last.get(layer.name, 0)) for layer in info.layers]
    return [
        max((step for step_of, step in own if step_of == i), default=0) for i in range(optimizers)
    ]


def progress_of(optimizer: Optimizer, *, wait: bool) -> Progress:
    """Return the progress of an optimizer according to its state.

    A count on an accelerator is read only if ``wait`` is True, since reading it synchronizes.
    """
    return Progress(own_count(optimizer, wait=wait), has_state(optimizer))


def own_count(optimizer: Optimizer, *, wait: bool = True) -> int | None:
    """Return how many steps an optimizer has done, according to the counts that it keeps itself.

    Optimizers keep such counts per layer, per parameter group or once; the largest is returned.
    Return None if the optimizer keeps no count. Also return None if ``wait`` is False and a count
    is on an accelerator, since reading that count would synchronize.
    """
    holders: list[Any] = [optimizer.state, *optimizer.state.values(), *optimizer.param_groups]
    given = [holder.get("step") for holder in holders if isinstance(holder, Mapping)]
    numbers = [
        one
        for one in given
        if isinstance(one, (int, float)) or (isinstance(one, Tensor) and one.numel() == 1)
    ]
    if not numbers or (not wait and any(is_on_accelerator(one) for one in numbers)):
        return None
    return max(int(one) for one in numbers)


def has_state(optimizer: Optimizer) -> bool:
    """Return whether an optimizer has state from earlier steps."""
    kept: list[Any] = list(optimizer.state.values())
    return any(not isinstance(state, Mapping) or len(state) > 0 for state in kept)
