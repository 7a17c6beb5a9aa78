"""A writer that resumes a run and may kill itself, and a reader that polls; to be run as processes.

python polling.py write DIRECTORY SEED      resumes the run for a while, and closes it or dies
python polling.py read DIRECTORY STOP       reads until the file STOP exists; prints the number of
                                            reads, and the largest number of steps read
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

import trustlens
from tests.support.runs import layers_table, metrics_table, run_info, steps_table
from trustlens.store.reader import RunFiles
from trustlens.store.writer import RunWriter

LAYERS = ["a", "b", "c"]
SEGMENT = 40


def write(directory: Path, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    writer = RunWriter(
        directory, run_info(layers=LAYERS), resume=lambda info: info, segment_rows=SEGMENT
    )
    span = RunFiles(directory).span("steps")
    last = 0 if span is None else max(0, span[1] - rng.randrange(30))
    writer.rollback(last, {})
    for _ in range(rng.randrange(5, 60)):
        steps = np.arange(last + 1, last + 1 + rng.randrange(1, 6))
        norm = steps[:, None] + np.arange(len(LAYERS)) / 4
        values = {"weight_norm": norm, "grad_norm": norm}
        writer.append("layers", layers_table(steps, LAYERS, values))
        writer.append("steps", steps_table(steps))
        writer.append("metrics", metrics_table(steps, {"loss": steps / 2}))
        writer.flush()
        last = int(steps[-1])
        time.sleep(0.002)
    if rng.random() < 0.5:
        os.kill(os.getpid(), signal.SIGKILL)
    writer.close(writer.info)


def read(directory: Path, stop: Path) -> None:
    while not (directory / "run.json").exists():
        time.sleep(0.01)
    kept_open, reads, most_steps = trustlens.Run(directory), 0, 0
    while not stop.exists():
        for run in (kept_open, trustlens.Run(directory)):
            most_steps = max(most_steps, check(run))
            reads += 1
    print(reads, most_steps)  # noqa: T201


def check(run: trustlens.Run) -> int:
    """Check that each written row is read once, and no other rows; return the number of steps."""
    frame = run.layers(["weight_norm"])
    count = len(frame) // len(LAYERS)
    step = np.repeat(np.arange(1, count + 1), len(LAYERS))
    layer = np.tile(np.arange(len(LAYERS)), count)
    assert frame["step"].tolist() == step.tolist(), frame["step"].tolist()[-30:]
    assert frame["layer"].cat.codes.tolist() == layer.tolist()
    np.testing.assert_array_equal(frame["weight_norm"].to_numpy(), step + layer / 4)
    for rows in (run.steps(), run.metrics()):
        assert rows["step"].tolist() == list(range(1, len(rows) + 1))
    metrics = run.metrics()
    assert (metrics["value"] * 2 == metrics["step"]).all()
    weight, grad = run.downsample(["weight_norm", "grad_norm"], 500).values()
    assert (weight.rows == weight.rows[:, :1]).all()
    np.testing.assert_array_equal(weight.rows, grad.rows)
    np.testing.assert_array_equal(weight.mean, grad.mean)
    assert not len(run.diagnose())  # it reads several quantities in buckets
    assert run.status in ("recording", "interrupted", "closed")
    return count


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        read(Path(sys.argv[2]), Path(sys.argv[3]))
