"""`Run`: selections, derived quantities, order, and empty runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trustlens
from trustlens.errors import RunError, UsageError
from trustlens.schema import QUANTITIES, RECORDED
from trustlens.store.reader import fingerprint

Make = Callable[..., Path]


def test_layers_are_sorted_by_step_then_in_model_order(synthetic_run: Make) -> None:
    names = ["z.weight", "a.weight", "m.bias"]
    run = trustlens.open_run(synthetic_run(layers=names, steps=4))
    frame = run.layers(["trust_ratio"])
    assert frame["layer"].astype(str).tolist() == names * 4
    assert frame["step"].tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert run.matrix("trust_ratio").columns.tolist() == names


@pytest.mark.parametrize("close", [True, False])
def test_selections_of_layers_and_steps(synthetic_run: Make, close: bool) -> None:
    run = trustlens.open_run(synthetic_run(steps=10, close=close))
    assert run.layers(steps=slice(3, 6))["step"].unique().tolist() == [3, 4, 5]
    assert run.layers(steps=slice(None, 3))["step"].unique().tolist() == [1, 2]
    assert run.layers(steps=[2, 9, 77])["step"].unique().tolist() == [2, 9]
    assert run.layers(steps=[])["step"].tolist() == []
    one = run.layers(["weight_norm"], layers=["block1.bias"])
    assert one["layer"].astype(str).unique().tolist() == ["block1.bias"]
    assert len(one) == 10
    with pytest.raises(UsageError, match="'nope' is not a layer"):
        run.layers(layers=["nope"])
    with pytest.raises(UsageError, match="'nope' is not a quantity"):
        run.layers(["nope"])
    for parameter in ("columns", "layers"):
        with pytest.raises(UsageError, match=rf"{parameter} got the string .*\['trust_ratio'\]"):
            run.layers(**{parameter: "trust_ratio"})
    with pytest.raises(UsageError, match="skips steps"):
        run.layers(steps=slice(0, 9, 2))


def test_derived_quantities_by_their_formulas(synthetic_run: Make) -> None:
    run = trustlens.open_run(synthetic_run(steps=6, layers=3))  # 100 elements a layer
    raw = {name: run.matrix(name).to_numpy() for name in RECORDED}
    expected = {
        "effective_rate": raw["learning_rate"] * raw["trust_ratio"],
        "update_ratio": raw["update_norm"] / raw["weight_norm"],
        "update_rms": raw["update_norm"] / 10,
        "weight_rms": raw["weight_norm"] / 10,
    }
    assert set(expected) == {name for name, q in QUANTITIES.items() if q.derived}
    for name, values in expected.items():
        np.testing.assert_allclose(run.matrix(name).to_numpy(), values, rtol=1e-12)


def test_a_layer_of_zeros_has_no_update_ratio_and_no_warning(synthetic_run: Make) -> None:
    zero = np.zeros((5, 8))
    run = trustlens.open_run(
        synthetic_run(steps=5, values={"weight_norm": zero, "update_norm": zero})
    )
    assert run.matrix("update_ratio").isna().all(axis=None)


@pytest.mark.parametrize(("layers", "steps"), [(0, 5), (3, 0), (0, 0), (3, 1)])
@pytest.mark.parametrize("close", [True, False])
def test_runs_with_few_or_no_rows(
    synthetic_run: Make, layers: int, steps: int, close: bool
) -> None:
    run = trustlens.open_run(synthetic_run(layers=layers, steps=steps, close=close))
    for name in QUANTITIES:
        assert run.matrix(name).shape == (steps if layers else 0, layers)
    assert run.last_step == steps
    assert len(run.layers()) == layers * steps
    assert len(run.histograms()) == 0
    assert len(run.steps()) == steps
    assert run.status == ("closed" if close else "recording")


def test_quantities_that_were_not_recorded_are_nan(synthetic_run: Make) -> None:
    run = trustlens.open_run(synthetic_run(values={"debias2": None, "swallowed": None}))
    assert run.matrix("debias2").isna().all(axis=None)
    assert run.matrix("swallowed").isna().all(axis=None)
    assert run.matrix("debias1").notna().all(axis=None)


def test_the_fingerprint_changes_when_the_rows_change(tmp_path: Path) -> None:
    from tests.support.runs import layers_table, run_info
    from trustlens.store.writer import RunWriter

    writer = RunWriter(tmp_path, run_info(layers=["a"]))
    run = trustlens.open_run(tmp_path)
    versions = [fingerprint(tmp_path)]
    for step in (1, 2):
        writer.append("layers", layers_table(np.array([step]), ["a"], {}))
        writer.flush()
        versions.append(fingerprint(tmp_path))
        assert fingerprint(tmp_path) == versions[-1]
    writer.close(writer.info.closed_at("2026-11-01T00:00:00+00:00"))
    versions.append(fingerprint(tmp_path))
    assert len(set(versions)) == 4
    assert run.status == "closed"


def test_a_run_reads_a_changed_run_json(tmp_path: Path) -> None:
    from tests.support.runs import layers_table, run_info
    from trustlens.store.writer import RunWriter

    writer = RunWriter(tmp_path, run_info(layers=["a"]))
    run = trustlens.open_run(tmp_path)
    info = run_info(layers=["b", "a"])
    writer.change_info(lambda _: info)  # a layer is added in front
    writer.append("layers", layers_table(np.array([1]), ["a", "b"], {}))
    writer.flush()
    assert run.downsample("trust_ratio").rows.shape == (1, 2)
    assert run.layer_names == ["b", "a"]
    assert len(run.layers(layers=["b"])) == 1
    writer.close(writer.info.closed_at("2026-11-01T00:00:00+00:00"))
    assert run.status == "closed"
    writer = RunWriter(tmp_path, info, resume=lambda _: info)
    assert run.status == "recording"
    writer.close(writer.info.closed_at("2026-11-02T00:00:00+00:00"))
    assert run.status == "closed"


def test_an_unchanged_run_json_is_not_read_again(
    synthetic_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, left = (trustlens.open_run(synthetic_run(f"{c}", close=c)) for c in (True, False))
    monkeypatch.delattr("trustlens.analysis.tables.read_info")
    for run in (closed, left):
        assert run.status == ("closed" if run is closed else "recording")
        run.downsample("trust_ratio"), run.layers(layers=run.layer_names[:1])


@pytest.mark.parametrize("steps", [(100, 50), (1, 2**70), (1,), (1, 2, 3), (1, 2.5), ("a", 3), 7])
def test_invalid_spans_are_rejected(synthetic_run: Make, steps: Any) -> None:
    run = trustlens.open_run(synthetic_run())
    with pytest.raises(
        UsageError, match=rf"steps={re.escape(repr(steps))} is not a range of steps"
    ):
        run.downsample("trust_ratio", steps=steps)


@pytest.mark.parametrize("points", [0, -1, 2.5, "7", None])
def test_invalid_numbers_of_points_are_rejected(synthetic_run: Make, points: Any) -> None:
    run = trustlens.open_run(synthetic_run())
    with pytest.raises(UsageError, match=rf"points={points!r} cannot be shown"):
        run.downsample("trust_ratio", points)


@pytest.mark.parametrize("number", [2**70, 1.5, "1", True])
def test_invalid_step_numbers_are_rejected(synthetic_run: Make, number: Any) -> None:
    run = trustlens.open_run(synthetic_run())
    for read in (run.layers, partial(run.matrix, "grad_norm"), run.trust_ratio):
        with pytest.raises(UsageError, match=r"steps=\[.*\] has a value that is not a step number"):
            read(steps=[number])
    assert run.downsample("trust_ratio", np.int64(3), steps=(-5, 2**53)).rows.sum() > 0


def test_a_run_without_recent_writes_was_interrupted(synthetic_run: Make) -> None:
    path = synthetic_run(close=False)
    run = trustlens.open_run(path)
    assert run.status == "recording"
    for file in (path, *path.rglob("*")):
        os.utime(file, (0, 0))
    assert run.status == "interrupted"


def test_find_runs(synthetic_run: Make, tmp_path: Path) -> None:
    synthetic_run("b")
    synthetic_run("deep/a")
    assert [path.name for path in trustlens.find_runs(tmp_path)] == ["b", "a"]
    synthetic_run("b/nested")  # runs are not nested
    assert [path.name for path in trustlens.find_runs(tmp_path)] == ["b", "a"]
    assert trustlens.find_runs(tmp_path / "b") == [tmp_path / "b"]
    with pytest.raises(UsageError, match="does not exist"):
        trustlens.find_runs(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is not a directory"):
        trustlens.find_runs(tmp_path / "b" / "run.json")


def test_rows_of_layers_that_run_json_lacks_are_an_error(
    synthetic_run: Make,
) -> None:
    path, other = synthetic_run("one"), synthetic_run("other", layers=["x", "y"])
    (path / "run.json").write_bytes((other / "run.json").read_bytes())
    with pytest.raises(RunError, match=r"layer 'block0\.bias' that its run\.json does not name"):
        trustlens.open_run(path).matrix("trust_ratio")


def test_an_error_message_lists_only_the_first_of_many_layers(synthetic_run: Make) -> None:
    run = trustlens.open_run(synthetic_run(layers=300, steps=1))
    with pytest.raises(UsageError, match=r"block0\.weight.*… \(300 in total\)$") as caught:
        run.layers(layers=["nope"])
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("rate", "label"), [(0.5, "Adam, lr 0.5"), ("nan", "Adam"), (None, "Adam")]
)
def test_labels(synthetic_run: Make, rate: Any, label: str) -> None:
    assert trustlens.open_run(synthetic_run("a", lr=rate)).label == f"a · {label}"


def test_a_process_that_exits_right_after_reading_does_not_abort(synthetic_run: Make) -> None:
    # Arrow's threads release what they read a little later. If they held Python objects, about one
    # process in five would abort at its exit.
    path = synthetic_run("run", layers=300, steps=2)
    code = (
        "import sys, trustlens; trustlens.open_run(sys.argv[1]).layers(['trust_ratio'], steps=[2])"
    )
    command = [sys.executable, "-c", code, str(path)]
    for _ in range(6):
        together = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(4)]
        assert [(process.communicate()[1], process.returncode) for process in together] == [
            (b"", 0)
        ] * 4
