"""Test figures of a long run, which is read in buckets of steps: means, and kept extremes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import trustlens
from tests.support.runs import layers_table, run_info, steps_table, synthetic_values
from trustlens.figures._curves import curves_data
from trustlens.figures._debias import debias_data
from trustlens.figures._heatmap import heatmap, heatmap_data
from trustlens.figures.ridgelines.canvas import payload
from trustlens.figures.ridgelines.data import ridgeline_data
from trustlens.figures.ridgelines.figure import ridgeline
from trustlens.schema import QUANTITIES
from trustlens.store.writer import RunWriter

STEPS = 3000
LAYERS = ["a.weight", "a.bias", "b.weight", "b.bias"]


@pytest.fixture(scope="module")
def values() -> dict[str, np.ndarray]:
    made = synthetic_values(STEPS, len(LAYERS))
    made["grad_norm"][1777, 1] = 1e6
    made["grad_norm"][2100, 2] = np.nan
    made["nonfinite"][2100, 2] = 3
    made["update_norm"][2500:, 3] *= 1e5
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, values: dict[str, np.ndarray]) -> trustlens.Run:
    path = tmp_path_factory.mktemp("long") / "run"
    writer = RunWriter(path, run_info(layers=LAYERS), segment_rows=800)
    for begin in range(0, STEPS, 50):
        steps = np.arange(begin + 1, begin + 51)
        rows = {name: each[begin : begin + 50] for name, each in values.items()}
        writer.append("layers", layers_table(steps, LAYERS, rows))
        writer.append("steps", steps_table(steps))
    writer.close(writer.info.closed_at("2026-11-25T00:00:00+00:00"))
    opened = trustlens.Run(path)
    assert in_buckets(opened)
    return opened


def in_buckets(run: trustlens.Run) -> bool:
    """Return whether the run is so long that it is read in buckets of steps."""
    return not run.sample(["weight_norm"], 10)["weight_norm"].exact


def means(values: np.ndarray, width: int) -> np.ndarray:
    ends = range(0, STEPS, width)
    return np.array([np.nanmean(values[begin : begin + width], axis=0) for begin in ends])


def test_a_heatmap_shows_the_means(run: trustlens.Run, values: dict[str, np.ndarray]) -> None:
    data = heatmap_data(run, "weight_norm", columns=20)
    assert data.width == 256
    assert data.steps.tolist() == list(range(1, STEPS, 256))
    np.testing.assert_allclose(data.values.T, means(values["weight_norm"], 256), rtol=1e-6)
    assert "12 means of 256 steps" in (
        heatmap(run, "weight_norm", columns=20).layout.title.subtitle.text
    )
    broken = heatmap_data(run, "grad_norm", columns=20)
    assert np.argwhere(broken.nonfinite).tolist() == [[2, 2100 // 256]]


def test_ridges_show_the_means(run: trustlens.Run) -> None:
    data = ridgeline_data([run, run], "weight_norm", ridges=12, smooth=False)
    assert [ridges.width for ridges in data.runs] == [256, 256]
    assert data.runs[0].heights.sum(axis=1).tolist() == [4.0] * 12
    (first, _) = payload(data, ["x", "y"])["runs"]
    assert first["note"] == "4 layers · each ridge shows means of 256 steps"
    assert ridgeline(run, "trust_ratio").data


def test_a_curve_keeps_extremes(run: trustlens.Run) -> None:
    data = curves_data(run, ["grad_norm", "update_ratio"], layer="a.bias", points=60)
    (curve,) = data.panels[0].curves
    assert len(curve.steps) <= 60
    assert curve.values.max() == np.float32(1e6)
    (broken,) = curves_data(run, ["grad_norm"], layer="b.weight", points=60).panels[0].curves
    assert 2100 - 128 < broken.nonfinite[0] <= 2100 + 128


def test_debias_factors_of_a_long_run_are_drawn(run: trustlens.Run) -> None:
    assert debias_data(run=run).panels


@pytest.mark.parametrize("name", list(QUANTITIES))
def test_every_quantity_can_be_drawn(run: trustlens.Run, name: str) -> None:
    assert heatmap(run, name).data
    assert ridgeline(run, name, style="flat").data


def test_a_diagnosis_finds_the_layer_and_the_bucket(run: trustlens.Run) -> None:
    found = run.diagnose().set_index("layer")
    assert set(found.index) >= {"b.bias", "b.weight"}
    assert found.loc["b.bias", "kind"] == "exploding"
    assert 2501 - 64 <= found.loc["b.bias", "step"] <= 2501
    assert found.loc["b.weight", "kind"] == "not finite"
    assert 2101 - 64 <= found.loc["b.weight", "step"] <= 2101


def test_a_healthy_run_has_no_finding_in_buckets_or_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = synthetic_values(STEPS, len(LAYERS))
    rng = np.random.default_rng(4)
    for name in ("weight_norm", "direction_norm", "update_norm", "grad_norm"):
        made[name] = np.exp(rng.normal(0, 0.1, made[name].shape))
    writer = RunWriter(tmp_path, run_info(layers=LAYERS), segment_rows=800)
    for begin in range(0, STEPS, 50):
        rows = {name: each[begin : begin + 50] for name, each in made.items()}
        steps = np.arange(begin + 1, begin + 51)
        writer.append("layers", layers_table(steps, LAYERS, rows))
    writer.close(writer.info)
    run = trustlens.Run(tmp_path)
    assert in_buckets(run)
    assert run.diagnose().empty
    monkeypatch.setattr("trustlens.analysis.tables.LONG", STEPS)
    assert not in_buckets(run)
    assert run.diagnose().empty
