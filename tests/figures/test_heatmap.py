"""Test the heatmap: values, range of the colours, and marked cells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trustlens.analysis.discovery import open_run
from trustlens.figures import heatmap, heatmap_data
from trustlens.figures.theme import THEMES

Maker = Callable[..., Path]


def test_every_cell_is_the_recorded_value(synthetic_run: Maker) -> None:
    run = open_run(synthetic_run(layers=6, steps=40))
    data = heatmap_data(run, "grad_norm", columns=11)
    assert data.layers == tuple(run.layer_names)
    assert len(data.steps) == 11
    np.testing.assert_array_equal(data.values.T, run.matrix("grad_norm", data.steps).to_numpy())
    assert (data.below, data.above, data.center) == (0, 0, None)
    assert data.low <= data.values.min() <= data.values.max() <= data.high


def test_outliers_have_the_colour_of_the_end_and_are_counted(synthetic_run: Maker) -> None:
    norm = np.tile(10.0 ** np.linspace(0, 0.3, 10), (20, 1))
    norm[15:, 3] = 1e12
    run = open_run(synthetic_run(layers=10, steps=20, values={"weight_norm": norm}))
    data = heatmap_data(run, "weight_norm")
    assert data.above == 5
    assert data.high < 1e3
    figure = heatmap(run, "weight_norm")
    assert "5 values above the scale" in figure.layout.title.subtitle.text
    assert np.asarray(figure.data[0].z).max() == pytest.approx(np.log10(data.high))
    assert heatmap_data(run, "weight_norm", view="full").above == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_neutral_colour_of_a_ratio_is_at_1(synthetic_run: Maker, theme: str) -> None:
    ratio = np.tile(10.0 ** np.linspace(-2, 1, 7), (5, 1))
    run = open_run(synthetic_run(layers=7, steps=5, values={"trust_ratio": ratio}))
    data = heatmap_data(run, view="full")
    assert data.center == 1
    trace = heatmap(run, view="full", theme=theme).data[0]  # type: ignore[arg-type]
    share = (0 - trace.zmin) / (trace.zmax - trace.zmin)
    places = [place for place, _ in trace.colorscale]
    nearest = int(np.abs(np.array(places) - share).argmin())
    neutral = THEMES[theme].diverging[len(THEMES[theme].diverging) // 2]
    shown = trace.colorscale[nearest][1]
    assert all(abs(int(shown[i : i + 2], 16) - int(neutral[i : i + 2], 16)) < 20 for i in (1, 3, 5))


def test_only_values_on_both_sides_of_the_centre_have_a_diverging_scale(
    synthetic_run: Maker,
) -> None:
    run = open_run(synthetic_run(values={"trust_ratio": np.full((50, 8), 0.25)}))
    assert heatmap_data(run, "update_dot_weight").center == 0
    assert heatmap_data(run, "trust_ratio").center is None


def test_cells_that_are_not_finite_are_marked(
    synthetic_run: Maker,
) -> None:
    values = np.ones((4, 3))
    values[2, 1] = np.nan
    nonfinite = np.zeros((4, 3))
    nonfinite[2, 1] = 1
    run = open_run(synthetic_run(layers=3, steps=4, values={
        "grad_norm": values, "nonfinite": nonfinite}))  # fmt: skip
    figure = heatmap(run, "grad_norm")
    assert [trace.type for trace in figure.data] == ["heatmap", "heatmap", "scatter"]
    marked = np.asarray(figure.data[1].z)
    assert np.isfinite(marked).sum() == 1
    assert marked[1, 2] == 1
    assert figure.data[2].name == "not finite"


def test_many_layers_have_labels_that_fit(synthetic_run: Maker) -> None:
    names = [f"blocks.{i}.attention.projection.with.a.long.name.weight" for i in range(300)]
    figure = heatmap(open_run(synthetic_run(layers=names, steps=3)))
    labels = figure.layout.yaxis.ticktext
    assert 40 < len(labels) < 120
    assert max(map(len, labels)) <= 36
    assert figure.layout.yaxis.autorange == "reversed"  # the first layer at the top
    assert list(figure.data[0].y) == names
