"""TensorBoard's own reader must find the numbers of the run."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

import trustlens
from tests.support.runs import START, make_run
from trustlens.element_bins import by_value, element_edges
from trustlens.errors import UsageError
from trustlens.export import TensorBoardListener, to_tensorboard
from trustlens.export import tensorboard as module
from trustlens.schema import QUANTITIES, RECORDED
from trustlens.store.layout import SCHEMAS

Make = Callable[..., Path]


def read(logdir: Path) -> EventAccumulator:
    accumulator = EventAccumulator(
        str(logdir), size_guidance={"histograms": 0, "tensors": 0, "scalars": 0}
    )
    return accumulator.Reload()


def histogram(event: Any) -> np.ndarray:
    """Return triples of left edge, right edge and count."""
    return make_ndarray(event.tensor_proto)


def in_bucket(values: np.ndarray, left: float, right: float) -> int:
    # A bucket includes its edge nearer to 0: the left one above 0, the right one below 0.
    inside = (
        (values >= left) & (values < right) if right > 0 else (values > left) & (values <= right)
    )
    return int(inside.sum())


@pytest.fixture
def run(synthetic_run: Make) -> trustlens.Run:
    return trustlens.open_run(synthetic_run("run", steps=30, layers=5))


def test_scalars_are_the_values_of_the_run(run: trustlens.Run, tmp_path: Path) -> None:
    to_tensorboard(run, tmp_path / "tb")
    board = read(tmp_path / "tb")
    rows = run.layers([*RECORDED, "effective_rate", "update_ratio"])
    for name in rows.columns[2:]:
        for layer, of_layer in rows.groupby("layer", observed=True):
            events = board.Scalars(f"{name}/{layer}")
            assert [e.step for e in events] == of_layer["step"].tolist()
            expected = of_layer[name].to_numpy(np.float32)
            np.testing.assert_array_equal(np.array([e.value for e in events], np.float32), expected)


def test_metrics_are_those_of_the_run(run: trustlens.Run, tmp_path: Path) -> None:
    to_tensorboard(run, tmp_path / "tb")
    board = read(tmp_path / "tb")
    for name, logged in run.metrics().groupby("name"):
        events = board.Scalars(name)
        assert [e.step for e in events] == logged["step"].tolist()
        np.testing.assert_allclose([e.value for e in events], logged["value"], rtol=1e-7)


def test_distributions_count_the_layers(run: trustlens.Run, tmp_path: Path) -> None:
    to_tensorboard(run, tmp_path / "tb")
    board = read(tmp_path / "tb")
    for name in (*RECORDED, "effective_rate", "update_ratio"):
        values = run.matrix(name)
        events = board.Tensors(f"layers/{name}")
        assert [e.step for e in events] == values.index.tolist()
        for event, row in zip(events, values.to_numpy(), strict=True):
            triples = histogram(event)
            assert triples.dtype == np.float64
            assert np.isfinite(triples).all()
            assert (np.diff(triples[:, 0]) > 0).all()
            assert triples[:, 2].sum() == len(run.layer_names)
            for left, right, count in triples:
                assert in_bucket(row, left, right) == count


def test_wall_times_are_those_of_the_recording(run: trustlens.Run, tmp_path: Path) -> None:
    to_tensorboard(run, tmp_path / "tb")
    events = read(tmp_path / "tb").Scalars("loss")
    times = [datetime.fromtimestamp(e.wall_time, UTC) for e in events]
    expected = run.steps()["time"]
    assert max(abs((a - b).total_seconds()) for a, b in zip(times, expected, strict=True)) < 1e-5
    assert (times[0] - START).total_seconds() == pytest.approx(0.1)


def test_an_export_in_blocks_is_the_same(
    run: trustlens.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_tensorboard(run, tmp_path / "whole")
    monkeypatch.setattr(module, "BLOCK_ROWS", 7 * len(run.layer_names))  # 30 steps: 7, 7, 7, 7, 2
    to_tensorboard(run, tmp_path / "blocks")
    whole, blocks = read(tmp_path / "whole"), read(tmp_path / "blocks")
    assert whole.Tags() == blocks.Tags()
    for tag in ("loss", f"trust_ratio/{run.layer_names[0]}"):
        assert whole.Scalars(tag) == blocks.Scalars(tag)
    assert whole.Tensors("layers/trust_ratio") == blocks.Tensors("layers/trust_ratio")


def test_values_that_are_not_finite_are_counted_outside_of_the_histograms(tmp_path: Path) -> None:
    weight = np.ones((4, 3))
    weight[1] = [np.nan, 2.0, np.inf]
    weight[2] = np.nan
    path = make_run(
        tmp_path / "run", steps=4, layers=3,
        values={"weight_norm": weight, "momentum_norm": None},
        metrics={"loss": np.array([1.0, np.inf, np.nan, 2.0])},
    )  # fmt: skip
    run = trustlens.open_run(path)
    to_tensorboard(run, tmp_path / "tb")
    board = read(tmp_path / "tb")

    events = board.Tensors("layers/weight_norm")
    assert [e.step for e in events] == [1, 2, 4]  # nothing finite to draw at step 3
    assert histogram(events[1]).tolist() == [[2.0, 2.5, 1.0]]
    missing = board.Scalars("layers_not_finite/weight_norm")
    assert [(e.step, e.value) for e in missing] == [(2, 2.0), (3, 3.0)]
    scalars = [e.value for e in board.Scalars(f"weight_norm/{run.layer_names[0]}")]
    assert scalars[0] == scalars[3] == 1.0
    assert all(math.isnan(value) for value in scalars[1:3])
    assert board.Scalars("loss")[1].value == math.inf
    # A quantity that the optimizer does not have has no tag, rather than NaN.
    assert not [tag for tag in board.Tags()["scalars"] if tag.startswith("momentum_norm")]


def test_element_histograms_keep_their_exact_counts(tmp_path: Path) -> None:
    model = torch.nn.Linear(50, 40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with trustlens.record(optimizer, tmp_path / "run", model=model, histograms_every=2) as recorder:
        for _ in range(3):
            model(torch.randn(8, 50)).square().mean().backward()
            optimizer.step()
            recorder.log(loss=1.0)
    run = trustlens.open_run(tmp_path / "run")
    to_tensorboard(run, tmp_path / "tb")
    board = read(tmp_path / "tb")
    rows = run.histograms("weight", "update")
    assert len(rows) == 2
    events = board.Tensors("elements/update/weight")
    edges = element_edges()
    for event, (_, row) in zip(events, rows.iterrows(), strict=True):
        assert event.step == row["step"]
        triples = histogram(event)
        ordered, _ = by_value(row["counts"])
        places = np.flatnonzero(ordered)
        np.testing.assert_array_equal(triples[:, 0], edges[places])
        np.testing.assert_array_equal(triples[:, 1], edges[places + 1])
        np.testing.assert_array_equal(triples[:, 2], ordered[places])
        assert triples[:, 2].sum() == 2000


def test_counts_beyond_float32_stay_exact(tmp_path: Path) -> None:
    table = pa.table(
        {"step": [1], "layer": ["a"], "quantity": ["weight"], "counts": [[(508, 2**24 + 1)]]},
        schema=SCHEMAS["histograms"],
    )
    listener = TensorBoardListener(tmp_path)
    listener.on_histograms(table)
    listener.close()
    (event,) = read(tmp_path).Tensors("elements/weight/a")
    assert histogram(event).tolist() == [[1.0, 1.25, 2**24 + 1]]


def test_a_live_listener_writes_what_the_export_writes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    listener = TensorBoardListener(tmp_path / "live")
    begin = datetime.now(UTC).timestamp()
    with trustlens.record(
        optimizer, tmp_path / "run", model=model, listeners=[listener], histograms_every=2
    ) as recorder:
        for _ in range(5):
            loss = model(torch.randn(4, 6)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    to_tensorboard(trustlens.open_run(tmp_path / "run"), tmp_path / "export")
    live, export = read(tmp_path / "live"), read(tmp_path / "export")
    for kind in ("scalars", "tensors"):
        assert sorted(live.Tags()[kind]) == sorted(export.Tags()[kind])
    for tag in live.Tags()["scalars"]:
        assert [(e.step, e.value) for e in live.Scalars(tag)] == [
            (e.step, e.value) for e in export.Scalars(tag)
        ]
    for tag in live.Tags()["tensors"]:
        for a, b in zip(live.Tensors(tag), export.Tensors(tag), strict=True):
            assert a.step == b.step
            np.testing.assert_array_equal(histogram(a), histogram(b))
    assert all(e.wall_time >= begin for e in live.Scalars("loss"))


def test_a_folder_with_events_is_rejected(run: trustlens.Run, tmp_path: Path) -> None:
    to_tensorboard(run, tmp_path / "tb")
    (file,) = (tmp_path / "tb").iterdir()
    before = file.read_bytes()
    with pytest.raises(UsageError, match="already holds TensorBoard events"):
        to_tensorboard(run, tmp_path / "tb")
    with pytest.raises(UsageError, match="already holds TensorBoard events"):
        TensorBoardListener(tmp_path / "tb")
    assert list((tmp_path / "tb").iterdir()) == [file]
    assert file.read_bytes() == before


def test_a_logdir_that_is_a_file_is_rejected(run: trustlens.Run, tmp_path: Path) -> None:
    (tmp_path / "tb").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        to_tensorboard(run, tmp_path / "tb")
    with pytest.raises(UsageError, match="cannot be created"):
        to_tensorboard(run, tmp_path / "tb" / "below")


def test_an_interrupted_export_leaves_no_file(
    run: trustlens.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TensorBoardListener, "on_metrics", stop)
    with pytest.raises(KeyboardInterrupt):
        to_tensorboard(run, tmp_path / "tb")
    assert list((tmp_path / "tb").iterdir()) == []
    monkeypatch.undo()
    to_tensorboard(run, tmp_path / "tb")
    assert read(tmp_path / "tb").Scalars("loss")


def test_a_recording_that_never_starts_leaves_no_file(tmp_path: Path) -> None:
    TensorBoardListener(tmp_path / "tb").close()
    assert list((tmp_path / "tb").iterdir()) == []


@pytest.mark.parametrize(("steps", "layers"), [(0, 3), (1, 1), (3, 0)])
def test_small_runs(synthetic_run: Make, tmp_path: Path, steps: int, layers: int) -> None:
    run = trustlens.open_run(synthetic_run("small", steps=steps, layers=layers))
    to_tensorboard(run, tmp_path / "tb", progress=True)
    tags = read(tmp_path / "tb").Tags()["scalars"] if steps else []
    assert ("loss" in tags) == bool(steps)
    assert any(tag.startswith("trust_ratio/") for tag in tags) == bool(steps and layers)


def test_every_quantity_except_rms_is_written(run: trustlens.Run, tmp_path: Path) -> None:
    to_tensorboard(run, tmp_path / "tb")
    tags = {tag.removeprefix("layers/") for tag in read(tmp_path / "tb").Tags()["tensors"]}
    assert tags == set(QUANTITIES) - {"update_rms", "weight_rms"}


def test_without_tensorboard_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['tensorboard'] = None\n"
        "import trustlens.export\n"
        "from trustlens.errors import MissingDependencyError\n"
        "try:\n    trustlens.export.to_tensorboard\n"
        "except MissingDependencyError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "trustlens-optim[tensorboard]" in done.stdout
