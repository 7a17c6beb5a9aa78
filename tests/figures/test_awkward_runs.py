"""Test figures of almost empty runs, extreme values and hostile names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from trustlens.analysis.discovery import open_run
from trustlens.analysis.run import Run
from trustlens.figures import curves, debias, heatmap, ridgeline

HOSTILE = "<img src=x onerror=alert(1)><b>bold</b>%{x}$\\alpha$<a href='http://x'>l</a>"

RUNS: dict[str, tuple[dict[str, Any], str]] = {
    "no layers": ({"layers": 0, "steps": 3}, "no layers"),
    "no steps": ({"steps": 0}, "No step has been recorded"),
    "one step": ({"steps": 1}, "one step"),
    "one layer": ({"layers": 1}, "1 layer"),
    "all NaN": (
        {"layers": 3, "steps": 4, "values": {
            "trust_ratio": np.full((4, 3), np.nan), "nonfinite": np.full((4, 3), 9)}},
        "all are NaN or infinite",
    ),
    "not recorded": ({"values": {"trust_ratio": None}}, "does not have it"),
    "constant": ({"values": {"trust_ratio": np.ones((50, 8))}}, "8 layers"),
    "all zero": ({"values": {"trust_ratio": np.zeros((50, 8))}}, "8 layers"),
    "infinite": ({"values": {"trust_ratio": np.full((50, 8), np.inf)}}, "all are NaN or infinite"),
    "huge": ({"values": {"trust_ratio": np.full((50, 8), 3e38)}}, "8 layers"),
    "tiny": ({"values": {"trust_ratio": np.full((50, 8), 1e-45)}}, "8 layers"),
    "hostile": ({"layers": [HOSTILE, "b"], "optimizer": f"x.{HOSTILE}",
                 "metrics": {HOSTILE: np.ones(50)}}, "&lt;img"),
}  # fmt: skip

DRAWINGS: dict[str, Callable[[Run, Any], go.Figure]] = {
    "3d": lambda run, theme: ridgeline(run, ridges=9, theme=theme),
    "flat": lambda run, theme: ridgeline([run, run], style="flat", ridges=9, theme=theme),
    "counts": lambda run, theme: ridgeline(run, scale="log", smooth=False, ridges=9, theme=theme),
    "heatmap": lambda run, theme: heatmap(run, theme=theme),
    "curves": lambda run, theme: curves(run, theme=theme),
    "layer": lambda run, theme: curves(run, layer=run.layer_names[0], theme=theme),
    "debias": lambda run, theme: debias(run=run, theme=theme),
}


@pytest.fixture(params=RUNS)
def awkward(request: pytest.FixtureRequest, synthetic_run: Callable[..., Path]) -> tuple[Run, str]:
    options, words = RUNS[request.param]
    return open_run(synthetic_run("run", **options)), words


def texts(value: Any) -> Iterator[str]:
    """Yield every text in the JSON of a figure."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from texts(part)


@pytest.mark.parametrize("drawing", DRAWINGS)
def test_every_figure_is_drawn_and_describes_the_run(
    awkward: tuple[Run, str], drawing: str
) -> None:
    run, words = awkward
    if drawing == "layer" and not run.layer_names:
        return
    # The themes differ in colours only; other tests draw in the light theme.
    drawn = json.loads(DRAWINGS[drawing](run, "dark").to_json())
    shown = [text.replace("<br>", " ") for text in texts(drawn)]
    if drawing in ("3d", "flat", "counts", "heatmap"):
        assert any(words in text for text in shown)
    for text in shown:
        assert "<img" not in text
        assert "<a " not in text
        assert "%{x}$" not in text
        assert "$\\alpha$" not in text
