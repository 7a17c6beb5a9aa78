"""Test curves: logged values, downsampling, axes, and marks for values that are not finite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trustlens.analysis.discovery import open_run
from trustlens.errors import UsageError
from trustlens.figures import curves, curves_data
from trustlens.figures.sampling import downsample_indices

Maker = Callable[..., Path]


@given(st.lists(st.floats(width=32), min_size=1, max_size=400), st.integers(3, 60))
def test_downsampling_keeps_extremes_and_nonfinite_values(values: list[float], points: int) -> None:
    array = np.array(values)
    kept = downsample_indices(array, points)
    assert len(kept) <= points + 2 or len(array) <= points
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert {0, len(array) - 1} <= set(kept.tolist())
    finite = array[np.isfinite(array)]
    if finite.size:
        assert np.nanmax(np.where(np.isfinite(array[kept]), array[kept], -np.inf)) == finite.max()
        assert np.nanmin(np.where(np.isfinite(array[kept]), array[kept], np.inf)) == finite.min()
    assert np.isfinite(array).all() == np.isfinite(array[kept]).all()


def test_each_metric_of_two_runs_has_one_panel(synthetic_run: Maker) -> None:
    adam = open_run(synthetic_run("adam", steps=30))
    lamb = open_run(synthetic_run("lamb", steps=20, optimizer="trustlens.optim.lamb.Lamb",
                                  metrics={"loss": np.linspace(3, 1, 20)}))  # fmt: skip
    data = curves_data([adam, lamb])
    assert [panel.name for panel in data.panels] == ["loss", "test_accuracy"]
    loss, accuracy = data.panels
    np.testing.assert_array_equal(loss.curves[1].values, np.linspace(3, 1, 20))
    assert [curve.color for curve in loss.curves] == ["blue", "red"]
    assert len(accuracy.curves[1].steps) == 0
    figure = curves([adam, lamb])
    assert [trace.showlegend for trace in figure.data] == [True, True, False, False]
    assert figure.layout.xaxis2.matches == "x"


def test_the_curves_of_a_layer_are_its_recorded_values(synthetic_run: Maker) -> None:
    runs = [open_run(synthetic_run(name, layers=layers, seed=i))
            for i, (name, layers) in enumerate([("a", 4), ("b", 4), ("c", ["other"])])]  # fmt: skip
    data = curves_data(runs, layer="block1.bias")
    assert [panel.name for panel in data.panels] == ["trust_ratio", "weight_norm", "direction_norm"]
    for panel in data.panels:
        assert panel.scale == "log"
        for run, curve in zip(runs[:2], panel.curves, strict=False):
            expected = run.matrix(panel.name)["block1.bias"].to_numpy()
            np.testing.assert_array_equal(curve.values, expected)
        assert len(panel.curves[2].steps) == 0
    assert len(curves_data(runs, ["update_ratio"], layer="block1.bias").panels) == 1


def test_an_exploding_loss_has_a_log_axis_and_nan_is_marked(synthetic_run: Maker) -> None:
    loss = np.concatenate([np.linspace(2.3, 0.1, 30), 10.0 ** np.linspace(0, 9, 15), [np.nan] * 5])
    run = open_run(synthetic_run(metrics={"loss": loss}))
    (panel,) = curves_data(run).panels
    assert panel.scale == "log"
    assert panel.curves[0].nonfinite.tolist() == [46, 47, 48, 49, 50]
    figure = curves(run)
    crosses = [trace for trace in figure.data if trace.marker.symbol == "x"]
    assert [list(trace.x) for trace in crosses] == [[46, 47, 48, 49, 50]]


def test_a_spike_does_not_flatten_a_linear_axis_and_the_start_stays_in_view(
    synthetic_run: Maker,
) -> None:
    loss = 0.1 + 2.2 * np.exp(-np.arange(50.0))
    loss[30] = 1e6
    run = open_run(synthetic_run(metrics={"loss": loss}))
    (panel,) = curves_data(run, scale="linear").panels
    assert 2.3 < panel.high < 3
    texts = [trace.text for trace in curves(run, scale="linear").data if trace.text is not None]
    assert texts == [("1e+06",)]
    assert curves_data(run, scale="linear", view="full").panels[0].high > 1e6
    assert curves_data(run, scale="linear", view=(0.0, 5.0)).panels[0].high == 5


def test_ordinary_metrics_have_a_linear_axis_with_all_values(synthetic_run: Maker) -> None:
    for panel in curves_data(open_run(synthetic_run())).panels:
        values = panel.curves[0].values
        assert panel.scale == "linear"
        assert panel.low < values.min() < values.max() < panel.high


@pytest.mark.parametrize(
    "options",
    [
        {"names": ["los"]},
        {"layer": "no.such.layer"},
        {"layer": "block0.bias", "names": ["nonsense"]},
        {"scale": "sqrt"},
        {"view": "wide"},
    ],
)
def test_unknown_names_raise(synthetic_run: Maker, options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        curves_data(open_run(synthetic_run()), **options)  # type: ignore[arg-type]


def test_without_metrics_the_figure_has_a_message(synthetic_run: Maker) -> None:
    figure = curves(open_run(synthetic_run(metrics={})))
    assert "Nothing was logged" in figure.layout.annotations[0].text.replace("<br>", " ")
