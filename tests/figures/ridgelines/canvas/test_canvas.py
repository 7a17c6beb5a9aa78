"""Test the canvas: its payload against the figure's data, its script and style sheet."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trustlens.analysis.discovery import open_run
from trustlens.figures.ridgelines import canvas
from trustlens.figures.ridgelines.canvas import payload
from trustlens.figures.ridgelines.data import ridgeline_data
from trustlens.figures.ridgelines.words import summary
from trustlens.figures.theme import THEMES

Maker = Callable[..., Path]


def heights(run: dict[str, Any], buckets: int) -> np.ndarray:
    packed = np.frombuffer(base64.b64decode(run["heights"]), "<u2")
    return packed.reshape(-1, buckets) * run["factor"]


def test_the_payload_has_the_data_of_the_figure(synthetic_run: Maker) -> None:
    ratio = np.full((20, 10), 0.1)
    ratio[:, 0] = 1e6  # an outlier, out of view
    ratio[:, 1:5] = np.geomspace(0.05, 2, 20)[:, None]
    bad = np.zeros((20, 10))
    bad[15:, 9] = 4
    ratio[15:, 9] = np.nan
    run = open_run(
        synthetic_run("run", layers=10, steps=20, values={"trust_ratio": ratio, "nonfinite": bad})
    )
    data = ridgeline_data(run, ridges=100)
    sent = json.loads(json.dumps(payload(data, ["id"]), allow_nan=False))
    [drawn] = sent["runs"]
    got = heights(drawn, sent["axis"]["buckets"])
    np.testing.assert_allclose(got, data.runs[0].heights, atol=sent["height"]["top"] / 65535)
    outside = np.add(np.add(drawn["below"], drawn["above"]), drawn["nonfinite"])
    np.testing.assert_allclose(got.sum(axis=1) + outside, 10, atol=0.01)
    assert drawn["above"] == [1] * 20
    assert drawn["nonfinite"] == [0] * 15 + [1] * 5
    assert drawn["steps"] == list(range(1, 21))


def test_the_height_axis_counts_layers_with_the_same_value(synthetic_run: Maker) -> None:
    ratio = np.tile([0.1, 1, 1, 10, 10, 10, 10, 10], (3, 1))
    run = open_run(synthetic_run("run", layers=8, steps=3, values={"trust_ratio": ratio}))
    data = ridgeline_data(run, view="full")
    sent = payload(data, ["id"])
    drawn = heights(sent["runs"][0], 160)[0]
    [one] = [tick["at"] / 2 for tick in sent["height"]["ticks"] if tick["label"] == "2"]
    crests = [drawn[first : first + 40].max() / one for first in (0, 60, 120)]
    assert crests == pytest.approx([1, 2, 5], rel=0.04)  # a bump may be centred between two buckets


def test_the_summary_describes_the_ridgelines_and_layers_out_of_view(synthetic_run: Maker) -> None:
    ratio = np.full((30, 12), 0.2)
    ratio[:, :3] *= np.array([0.8, 1.1, 1.3])
    ratio[9:12, 11] = 1e9
    run = open_run(synthetic_run("wild", layers=12, steps=30, values={"trust_ratio": ratio}))
    data = ridgeline_data(run, ridges=100)
    words = summary(data, data.runs[0])
    assert "12 layers at 30 steps, from 1 to 30" in words
    assert "up to 1 above" in words
    assert "between steps 10 and 12" in words


def test_each_ridge_has_the_colour_of_its_step(synthetic_run: Maker) -> None:
    short = open_run(synthetic_run("short", steps=1))
    long = open_run(synthetic_run("long", steps=9))
    drawn, other = payload(ridgeline_data([long, short]), ["x", "y"])["runs"]
    for name, theme in THEMES.items():
        ramp = theme.runs["blue"].ramp
        assert drawn["ridgeColors"][name][0] == ramp[0]
        assert drawn["ridgeColors"][name][-1] == ramp[-1]
        assert len(drawn["ridgeColors"][name]) == len(drawn["steps"])
        assert other["ridgeColors"][name] == [theme.runs["orange"].ramp[0]]
        [alone] = payload(ridgeline_data(short), ["z"])["runs"]
        assert alone["ridgeColors"][name] == [ramp[-1]]


def test_each_script_follows_those_that_it_uses() -> None:
    text = canvas.script()
    parts = ["camera", "surface", "box", "listen", "ridgelines"]
    places = [text.index(f"  window.trustlens.{part} = ") for part in parts]
    assert places == sorted(places)
    assert ".ridgelines-canvas {" in canvas.style()


def test_script_and_style_make_no_requests() -> None:
    for text in (canvas.script(), canvas.style()):
        assert "http" not in text
        assert "url(" not in text
        assert "import" not in text
