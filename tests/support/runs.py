"""Runs on disk with given values, written by the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trustlens.schema import COUNTS, RECORDED
from trustlens.store.layout import SCHEMAS
from trustlens.store.run_info import LayerInfo, OptimizerInfo, RunInfo
from trustlens.store.writer import RunWriter

START = datetime(2026, 11, 1, tzinfo=UTC)


def run_info(
    name: str = "synthetic",
    layers: Sequence[str] = ("a.weight", "a.bias"),
    optimizer: str = "torch.optim.adam.Adam",
    lr: float = 0.01,
    size: int = 100,
) -> RunInfo:
    return RunInfo(
        name=name,
        created=START.isoformat(),
        optimizers=(OptimizerInfo(optimizer, ({"lr": lr, "betas": [0.9, 0.99]},)),),
        layers=tuple(LayerInfo(layer, (size,), "float32") for layer in layers),
        config={"lr": lr},
        versions={"trustlens": "0", "torch": "0"},
    )


def layers_table(
    steps: np.ndarray, names: Sequence[str], values: Mapping[str, np.ndarray]
) -> pa.Table:
    """Return rows of `layers` from arrays (steps, layers); missing quantities are null."""
    rows = len(steps) * len(names)
    columns: dict[str, Any] = {
        "step": np.repeat(np.asarray(steps, np.int64), len(names)),
        "layer": pa.DictionaryArray.from_arrays(
            pa.array(np.tile(np.arange(len(names), dtype=np.int32), len(steps))),
            pa.array(list(names), pa.string()),
        ),
    }
    for name in RECORDED:
        if name in values:
            flat = np.broadcast_to(values[name], (len(steps), len(names))).reshape(-1)
            columns[name] = pa.array(flat.astype(np.int64 if name in COUNTS else np.float32))
        else:
            columns[name] = pa.nulls(rows, SCHEMAS["layers"].field(name).type)
    return pa.table(columns, schema=SCHEMAS["layers"])


def steps_table(steps: np.ndarray) -> pa.Table:
    return pa.table(
        {
            "step": np.asarray(steps, np.int64),
            "time": pa.array(
                [START + timedelta(seconds=0.1 * int(s)) for s in steps],
                SCHEMAS["steps"].field("time").type,
            ),
            "skipped": np.zeros(len(steps), bool),
        },
        schema=SCHEMAS["steps"],
    )


def metrics_table(steps: np.ndarray, metrics: Mapping[str, np.ndarray]) -> pa.Table:
    names = [name for name in metrics for _ in steps]
    return pa.table(
        {
            "step": np.tile(np.asarray(steps, np.int64), len(metrics)),
            "name": pa.array(names, pa.string()).dictionary_encode(),
            "value": np.concatenate([np.asarray(v, float) for v in metrics.values()])
            if metrics
            else np.empty(0),
        },
        schema=SCHEMAS["metrics"],
    )


def synthetic_values(steps: int, layers: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Return plausible values (steps, layers) of every recorded quantity: smooth random walks."""
    rng = np.random.default_rng(seed)

    def walk(low: float, high: float) -> np.ndarray:
        level = np.exp(rng.uniform(np.log(low), np.log(high), layers))
        return level * np.exp(np.cumsum(rng.normal(0, 0.03, (steps, layers)), axis=0))

    weight, direction = walk(0.5, 8.0), walk(0.3, 30.0)
    t = np.arange(1, steps + 1)[:, None] + np.zeros(layers)
    update = 0.01 * direction * np.exp(rng.normal(0, 0.05, (steps, layers)))
    grad = walk(1e-3, 1.0)
    return {
        "trust_ratio": np.minimum(weight / direction, 10.0),
        "weight_norm": weight,
        "direction_norm": direction,
        "update_norm": update,
        "grad_norm": grad,
        "undecayed_norm": direction,
        "undecayed_dot_weight": rng.normal(0, 1, (steps, layers)),
        "update_dot_weight": rng.normal(0, 0.01, (steps, layers)),
        "grad_dot_momentum": rng.normal(0, 0.1, (steps, layers)),
        "momentum_norm": grad * 0.7,
        "variance_sum": grad**2,
        "surprise": np.exp(rng.normal(0, 0.2, (steps, layers))),
        "update_max": update / 3,
        "grad_max": grad / 3,
        "debias1": 1 / (1 - 0.9**t),
        "debias2": 1 / (1 - 0.99**t),
        "learning_rate": np.full((steps, layers), 0.01),
        "weight_decay": np.zeros((steps, layers)),
        "nonfinite": np.zeros((steps, layers)),
        "zero_grad": np.zeros((steps, layers)),
        "swallowed": np.zeros((steps, layers)),
    }


def make_run(
    path: Path,
    *,
    layers: int | Sequence[str] = 8,
    steps: int = 50,
    name: str | None = None,
    seed: int = 0,
    optimizer: str = "torch.optim.adam.Adam",
    lr: float = 0.01,
    values: Mapping[str, np.ndarray | None] | None = None,
    metrics: Mapping[str, np.ndarray] | None = None,
    close: bool = True,
) -> Path:
    """Write a run by the store. ``values`` replaces quantities; None makes one null."""
    names = (
        [f"block{i // 2}.{'weight' if i % 2 == 0 else 'bias'}" for i in range(layers)]
        if (isinstance(layers, int))
        else list(layers)
    )
    info = run_info(name or path.name, names, optimizer, lr)
    writer = RunWriter(path, info)
    numbers = np.arange(1, steps + 1)
    all_values: dict[str, np.ndarray | None] = {
        **synthetic_values(steps, len(names), seed),
        **(values or {}),
    }
    if metrics is None:
        metrics = {
            "loss": 2.3 * np.exp(-numbers / 20),
            "test_accuracy": 1 - 0.9 * np.exp(-numbers / 20),
        }
    not_null = {key: value for key, value in all_values.items() if value is not None}
    writer.append("layers", layers_table(numbers, names, not_null))
    writer.append("steps", steps_table(numbers))
    writer.append("metrics", metrics_table(numbers, metrics))
    writer.flush()
    if close:
        writer.close(info.closed_at((START + timedelta(seconds=steps)).isoformat()))
    return path
