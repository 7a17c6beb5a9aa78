"""Test ridgelines: the data against direct computation, and the structure of the figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trustlens.analysis.discovery import open_run
from trustlens.analysis.run import Run
from trustlens.errors import UsageError
from trustlens.figures import ridgeline, ridgeline_data
from trustlens.figures.ridgelines.data import BANDWIDTH

Maker = Callable[..., Path]


@pytest.fixture
def wild(synthetic_run: Maker) -> Run:
    """Return a run of 40 layers and 30 steps with zeros, extremes, infinities and NaN."""
    rng = np.random.default_rng(1)
    ratio = 10 ** rng.normal(0, 1, (30, 40))
    ratio[3, :5] = 0
    ratio[4, 5] = 1e30
    ratio[5, 6] = 1e-40
    ratio[6, :] = np.inf
    ratio[7, 1:3] = np.nan
    nonfinite = np.zeros((30, 40))
    nonfinite[7, 1] = 3  # the other NaN of step 8 is a missing value
    path = synthetic_run("wild", layers=40, steps=30, values={
        "trust_ratio": ratio, "nonfinite": nonfinite})  # fmt: skip
    return open_run(path)


def test_counts_agree_with_numpy_histograms(wild: Run) -> None:
    data = ridgeline_data(wild, buckets=25, smooth=False)
    (ridges,) = data.runs
    values = wild.matrix("trust_ratio").to_numpy()
    assert data.scale == "log"
    for row, heights in zip(values, ridges.heights, strict=True):
        np.testing.assert_array_equal(heights, np.histogram(row, data.edges)[0])
    np.testing.assert_array_equal(ridges.below, (values < data.edges[0]).sum(axis=1))
    above = np.isfinite(values) & (values > data.edges[-1])
    np.testing.assert_array_equal(ridges.above, above.sum(axis=1))
    assert ridges.below[3] == 5  # the zeros
    assert ridges.above[4] == 1  # 1e30 does not flatten the rest
    assert ridges.nonfinite.tolist() == [0] * 6 + [40, 1] + [0] * 22


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("view", ["robust", "full", (0.3, 2.0)])
@pytest.mark.parametrize("scale", ["log", "linear"])
def test_every_layer_is_counted_once(wild: Run, scale: str, view: object, smooth: bool) -> None:
    data = ridgeline_data(wild, scale=scale, view=view, smooth=smooth, ridges=7)  # type: ignore[arg-type]
    (ridges,) = data.runs
    total = ridges.heights.sum(axis=1) + ridges.below + ridges.above + ridges.nonfinite
    recorded = wild.matrix("trust_ratio", ridges.steps)
    missing = np.where(ridges.steps == 8, 1, 0)
    np.testing.assert_allclose(total, recorded.shape[1] - missing, rtol=1e-5)


def test_smooth_ridges_are_a_sum_of_one_normalised_gaussian_per_layer(wild: Run) -> None:
    data = ridgeline_data(wild, buckets=80)
    (ridges,) = data.runs
    ends = np.log10(data.edges[[0, -1]])
    bucket = (np.arange(80) + 0.5) / 80
    for step, heights in zip(ridges.steps, ridges.heights, strict=True):
        expected = np.zeros(80)
        for value in wild.matrix("trust_ratio", [step]).to_numpy()[0]:
            if not data.edges[0] <= value <= data.edges[-1]:
                continue
            place = (np.log10(value) - ends[0]) / (ends[1] - ends[0])
            bump = np.exp(-0.5 * ((bucket - place) / BANDWIDTH) ** 2)
            expected += bump / bump.sum()
        # The error of linear binning is at most 2 % of the peak of one layer.
        peak = 1 / (BANDWIDTH * 80 * np.sqrt(2 * np.pi))
        np.testing.assert_allclose(heights, expected, rtol=0.01, atol=0.02 * peak)


def test_a_single_layer_is_a_narrow_bump_at_its_value(synthetic_run: Maker) -> None:
    ratio = np.full((5, 1), 3.0)
    run = open_run(synthetic_run(layers=1, steps=5, values={"trust_ratio": ratio}))
    data = ridgeline_data(run, view=(0.1, 100.0))
    heights = data.runs[0].heights[2]
    assert data.values[heights.argmax()] == pytest.approx(3.0, rel=0.03)
    assert heights[np.abs(np.log10(data.values / 3)) > 5 * BANDWIDTH * 3].max() < 1e-5


def test_two_runs_share_buckets_steps_and_heights(synthetic_run: Maker) -> None:
    adam = open_run(synthetic_run("adam", layers=10, steps=60, seed=1))
    lamb = open_run(
        synthetic_run("lamb", layers=10, steps=60, seed=2, optimizer="trustlens.optim.lamb.Lamb")
    )
    data = ridgeline_data([adam, lamb], "weight_norm", ridges=12)
    first, second = data.runs
    assert (first.color, second.color) == ("blue", "red")
    np.testing.assert_array_equal(first.steps, second.steps)
    assert len(first.steps) == 12
    assert (first.steps[0], first.steps[-1]) == (1, 60)
    pooled = np.concatenate([adam.matrix("weight_norm", first.steps).to_numpy(),
                             lamb.matrix("weight_norm", first.steps).to_numpy()])  # fmt: skip
    assert data.edges[0] < pooled.min() < pooled.max() < data.edges[-1]
    assert data.peak == max(first.heights.max(), second.heights.max())


def test_a_run_that_ended_early_keeps_its_first_and_last_step(synthetic_run: Maker) -> None:
    long = open_run(synthetic_run("long", steps=50))
    short = open_run(synthetic_run("short", steps=13))
    data = ridgeline_data([long, short], ridges=10)
    assert set(data.runs[1].steps[:-1]) <= set(data.runs[0].steps)
    assert data.runs[1].steps[-1] == 13
    assert data.lateness(data.runs[1])[-1] == pytest.approx(12 / 49)


def test_an_exploding_layer_is_out_of_view_and_marked(synthetic_run: Maker) -> None:
    norm = np.tile(np.linspace(1.0, 2.0, 12), (20, 1))
    norm[10:, 4] = 10.0 ** np.linspace(1, 12, 10)
    run = open_run(synthetic_run(layers=12, steps=20, values={"weight_norm": norm}))
    data = ridgeline_data(run, "weight_norm", scale="linear")
    (mark,) = data.marks(data.runs[0])
    assert data.edges[-1] < 10
    assert mark.side == "above"
    assert mark.steps.tolist() == list(range(11, 21))
    assert mark.words[0].startswith("step 11: 1 layer above ")
    assert ridgeline_data(run, "weight_norm", view="full").marks(data.runs[0]) != []
    assert ridgeline_data(run, "weight_norm", view="full").runs[0].above.sum() == 0


def test_signed_quantities_have_a_linear_axis(synthetic_run: Maker) -> None:
    data = ridgeline_data(open_run(synthetic_run()), "update_dot_weight")
    assert data.scale == "linear"
    assert data.edges[0] < 0 < data.edges[-1]


def test_only_zeros_have_a_linear_axis_unless_log_is_requested(synthetic_run: Maker) -> None:
    run = open_run(synthetic_run(layers=3, steps=4, values={"update_norm": np.zeros((4, 3))}))
    assert ridgeline_data(run, "update_norm").scale == "linear"
    requested = ridgeline_data(run, "update_norm", scale="log").runs[0]
    assert requested.below.tolist() == [3] * 4
    assert requested.heights.sum() == 0


@pytest.mark.parametrize(
    "options",
    [
        {"quantity": "nonsense"},
        {"scale": "sqrt"},
        {"view": "wide"},
        {"view": (2.0, 1.0)},
        {"view": (0.0, 1.0)},
        {"ridges": 0},
        {"buckets": 0},
    ],
)
def test_invalid_options_raise(synthetic_run: Maker, options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        ridgeline_data(open_run(synthetic_run()), **options)  # type: ignore[arg-type]


def test_no_run_or_an_unknown_style_raises(synthetic_run: Maker) -> None:
    with pytest.raises(UsageError, match="no run"):
        ridgeline_data([])
    with pytest.raises(UsageError, match="3d, flat"):
        ridgeline(open_run(synthetic_run()), style="4d")  # type: ignore[arg-type]


def test_3d_curtains_are_at_their_step_below_their_crest(synthetic_run: Maker) -> None:
    runs = [open_run(synthetic_run(name, steps=30, seed=i)) for i, name in enumerate("ab")]
    data = ridgeline_data(runs, ridges=9)
    figure = ridgeline(runs, ridges=9)
    first, second = figure.layout.scene, figure.layout.scene2
    for axis in ("xaxis", "yaxis", "zaxis"):
        assert first[axis].range == second[axis].range
    assert first.yaxis.range[0] > first.yaxis.range[1]  # the first step at the far end
    mesh, crest, *_ = figure.data
    assert (mesh.type, crest.type) == ("mesh3d", "scatter3d")
    ridges = data.runs[0]
    assert set(np.asarray(mesh.y)) == set(ridges.steps)
    assert max(np.asarray(c).max() for c in (mesh.i, mesh.j, mesh.k)) == len(mesh.x) - 1
    assert len(mesh.vertexcolor) == len(mesh.x)
    for step, heights in zip(ridges.steps, ridges.heights, strict=True):
        at = (np.asarray(mesh.y) == step) & (np.asarray(mesh.z) > 0)
        assert np.asarray(mesh.z)[at].max() == heights.max()
    line = np.asarray(crest.z).reshape(len(ridges.steps), -1)
    assert np.isnan(line[:, -1]).all()
    lifted = line[:, :-1] - ridges.heights
    assert 0 < np.nanmin(lifted) <= np.nanmax(lifted) < 0.01 * data.peak


def test_flat_ridges_rise_from_their_step_and_later_ones_are_in_front(
    synthetic_run: Maker,
) -> None:
    runs = [open_run(synthetic_run(name, steps=30, seed=i)) for i, name in enumerate("ab")]
    data = ridgeline_data(runs, ridges=9)
    figure = ridgeline(runs, style="flat", ridges=9)
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]  # the first step on top
    assert figure.layout.xaxis2.matches == "x"
    assert figure.layout.yaxis2.matches == "y"
    assert figure.layout.xaxis.type == data.scale
    drawn = [trace for trace in figure.data if trace.xaxis == "x"]
    base = [trace.y[0] for trace in drawn]
    assert base == data.runs[0].steps.tolist()  # drawn in this order: the last one is in front
    heights = data.runs[0].heights
    rise = data.runs[0].steps[:, None] - np.array([trace.y for trace in drawn])
    np.testing.assert_array_equal(rise[:, [0, -1]], 0)  # both ends on the base
    np.testing.assert_allclose(rise[:, 1:-1] / rise.max(), heights / heights.max(), atol=1e-9)


@pytest.mark.parametrize("style", ["3d", "flat"])
def test_marks_and_captions_report_layers_out_of_view(wild: Run, style: str) -> None:
    figure = ridgeline(wild, style=style)  # type: ignore[arg-type]
    words = [word for trace in figure.data if trace.text is not None for word in trace.text]
    assert "step 7: 40 layers not finite" in words
    assert any(word.startswith("step 5: 1 layer above") for word in words)
    captions = " ".join(note.text for note in figure.layout.annotations)
    assert "out of view: up to 5 below, 1 above, 40 not finite" in captions
