"""Build the contents of ``run.json``: optimizers, layers, config and versions."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from trustlens._version import __version__
from trustlens.errors import UsageError
from trustlens.store.run_info import LayerInfo, OptimizerInfo, RecordingInfo, RunInfo


def describe_optimizer(optimizer: Optimizer, family: str, variant: str | None) -> OptimizerInfo:
    """Describe an optimizer by its class name, its groups' options, its family and its variant.

    Parameters
    ----------
    optimizer : Optimizer
        The optimizer.
    family : str
        The ``name`` of the optimizer's ``trustlens.recording.optimizers.Family``.
    variant : str or None
        The ``variant`` of that family.
    """
    kind = type(optimizer)
    hidden = {"params", "param_names"}
    groups = tuple(
        json_ready({key: value for key, value in group.items() if key not in hidden})
        for group in optimizer.param_groups
    )
    return OptimizerInfo(f"{kind.__module__}.{kind.__qualname__}", groups, family, variant)


def describe_run(
    name: str,
    optimizers: Sequence[OptimizerInfo],
    layers: Sequence[LayerInfo],
    config: Mapping[str, Any],
    recording: RecordingInfo,
) -> RunInfo:
    """Return the contents of ``run.json`` for a run that begins now."""
    return RunInfo(
        name=name,
        created=datetime.now(UTC).isoformat(),
        optimizers=tuple(optimizers),
        layers=tuple(layers),
        config=json_ready(config),
        versions={
            "trustlens": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        recording=recording,
    )


def describe_resumed(
    directory: Path, old: RunInfo, new: RunInfo, *, keep: Sequence[str]
) -> RunInfo:
    """Return the contents of ``run.json`` for a run that is resumed.

    Parameters
    ----------
    directory : Path
        The run's directory, for the error message.
    old : RunInfo
        The present contents of the run's ``run.json``.
    new : RunInfo
        The contents of ``run.json`` that a new run with the same arguments would have.
    keep : sequence of str
        Names of fields to take from ``old`` instead of ``new``, besides ``created``.

    Raises
    ------
    UsageError
        If a layer has another shape in ``new`` than in ``old``.
    """
    kept = {name: getattr(old, name) for name in ("created", *keep)}
    return replace(
        new,
        **kept,
        layers=_all_layers(directory, old.layers, new.layers),
        recording=old.recording.resumed_by(new.recording),
    )


def _all_layers(
    directory: Path, old: Sequence[LayerInfo], new: Sequence[LayerInfo]
) -> tuple[LayerInfo, ...]:
    """Return the new layers, followed by those that only `old` contains.

    Raises
    ------
    UsageError
        If a layer has another shape in `new` than in `old`.
    """
    shapes = {layer.name: layer.shape for layer in old}
    for layer in new:
        if shapes.get(layer.name, layer.shape) != layer.shape:
            raise UsageError(
                f"the run in '{directory}' has a layer '{layer.name}' of shape "
                f"{list(shapes[layer.name])}, and here it has {list(layer.shape)}; give the model "
                "that the run was recorded with, or record into another directory"
            )
    present = {layer.name for layer in new}
    return (*new, *(layer for layer in old if layer.name not in present))


def json_ready(value: Any) -> Any:
    """Return a value in a form that JSON can represent; values of other types become text."""
    if isinstance(value, Mapping):
        return {str(key): json_ready(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(each) for each in value]
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.numel() == 1):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no NaN or infinity
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
