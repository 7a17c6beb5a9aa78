"""Test the debias factor against exact arithmetic and recorded factors."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from trustlens.analysis.discovery import open_run
from trustlens.errors import UsageError
from trustlens.figures import debias, debias_data
from trustlens.figures._debias import debias_factor

Maker = Callable[..., Path]


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.99, 0.999, 1 - 2**-40])
def test_the_factor_agrees_with_exact_arithmetic(beta: float) -> None:
    steps = np.array([1, 2, 3, 10, 100])
    exact = [float(1 / (1 - Fraction(beta) ** int(t))) for t in steps]
    np.testing.assert_allclose(debias_factor(beta, steps), exact, rtol=1e-12)


def test_panels_start_at_the_values_of_the_article_and_have_separate_axes() -> None:
    data = debias_data()
    assert [panel.factors[0] for panel in data.panels] == pytest.approx([10, 100, 1000])
    assert [panel.faded for panel in data.panels] == [44, 460, 4613]
    for panel in data.panels:
        after = debias_factor(panel.beta, np.array([panel.faded - 1, panel.faded]))
        assert after[0] > 1.01 >= after[1]
    layout = debias().layout
    assert [layout[axis].range[1] > top for axis, top in
            (("yaxis", 10), ("yaxis2", 100), ("yaxis3", 1000))] == [True] * 3  # fmt: skip
    assert layout.yaxis2.matches is None


def test_long_ranges_have_a_bounded_number_of_points() -> None:
    (panel,) = debias_data([0.9999], steps=10**6).panels
    assert len(panel.steps) <= 400
    assert (panel.steps[0], panel.steps[-1]) == (1, 10**6)


def test_recorded_factors_agree_with_the_formula(synthetic_run: Maker) -> None:
    run = open_run(synthetic_run(steps=60))
    data = debias_data(run=run)
    assert [(panel.symbol, panel.beta) for panel in data.panels] == [("β₁", 0.9), ("β₂", 0.99)]
    for panel in data.panels:
        assert panel.recorded is not None
        np.testing.assert_array_equal(panel.recorded.steps, panel.steps)
        np.testing.assert_allclose(panel.recorded.low, panel.factors, rtol=1e-6)
    assert len(debias(run=run).data) == 4


def test_layers_that_started_later_are_shown_as_a_range(synthetic_run: Maker) -> None:
    t = np.arange(1, 21)[:, None] + np.zeros(4)
    t[:, 3] = np.maximum(t[:, 3] - 10, 1)
    values = {"debias1": 1 / (1 - 0.9**t)}
    (panel, _) = debias_data(run=open_run(synthetic_run(layers=4, steps=20, values=values))).panels
    assert panel.recorded is not None
    np.testing.assert_allclose(panel.recorded.high, values["debias1"].max(axis=1), rtol=1e-6)
    assert (
        debias(run=open_run(synthetic_run("b", layers=4, steps=20, values=values)))
        .data[1]
        .error_y.visible
    )


def test_a_run_without_debias_factors_has_a_note(synthetic_run: Maker) -> None:
    run = open_run(synthetic_run(values={"debias1": None, "debias2": None}))
    data = debias_data([0.9], run=run)
    assert data.panels[0].recorded is None
    assert "recorded no debias factor" in data.note
    assert "recorded no debias factor" in debias(run=run).layout.title.subtitle.text


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_both_axes_have_the_scale(scale: str) -> None:
    layout = debias([0.0, 0.9, 0.9], scale=scale).layout  # type: ignore[arg-type]
    assert (layout.xaxis.type, layout.yaxis.type) == (scale, scale)
    assert layout.xaxis2.type == scale
    assert "xaxis3" not in layout  # a repeated β has one panel


@pytest.mark.parametrize("options", [{"betas": [1.0]}, {"betas": [-0.1]}, {"betas": [float("nan")]},
                                     {"steps": 0}, {"scale": "sqrt"}])  # fmt: skip
def test_invalid_options_raise(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        debias(**options)  # type: ignore[arg-type]
