"""Test colours by computing contrast and simulating colour-vision deficiencies."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest

from trustlens.errors import MissingDependencyError, UsageError
from trustlens.figures import debias, debias_data, theme
from trustlens.figures.theme import THEMES, Theme

# Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision
# Deficiency" (2009), severity 1, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                            [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                              [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                            [0.004733, 0.691367, 0.303900]]),
}  # fmt: skip

both = pytest.mark.parametrize("look", THEMES.values(), ids=THEMES)


def linear(color: str) -> np.ndarray:
    part = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)


def luminance(color: str) -> float:
    return float(np.array([0.2126, 0.7152, 0.0722]) @ linear(color))


def contrast(first: str, second: str) -> float:
    """Return the contrast ratio of WCAG 2."""
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                       [0.0193339, 0.1191920, 0.9503041]])  # fmt: skip
    ratio = to_xyz @ np.clip(rgb, 0, 1) / np.array([0.95047, 1.0, 1.08883])
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@both
def test_text_and_lines_have_enough_contrast(look: Theme) -> None:
    for text in (look.ink, look.muted):
        assert contrast(text, look.background) >= 4.5
        assert contrast(text, look.panel) >= 4.5
    for line in (look.accent, look.alert, *(run.line for run in look.runs.values())):
        assert contrast(line, look.background) >= 3


@both
@pytest.mark.parametrize("vision", VISION)
def test_colours_of_runs_are_distinct_with_any_colour_vision(look: Theme, vision: str) -> None:
    seen = {key: lab(VISION[vision] @ linear(run.line)) for key, run in look.runs.items()}
    for first, second in itertools.combinations(seen, 2):
        distance = np.linalg.norm(seen[first] - seen[second])
        families = {first, second} <= {"blue", "red", "green", "orange"}
        assert distance >= (18 if families else 10), (first, second)


@both
def test_the_lightness_of_ramps_is_monotonic(look: Theme) -> None:
    for key, run in look.runs.items():
        steps = np.diff([lab(linear(color))[0] for color in run.ramp])
        assert (np.abs(steps) > 5).all(), key
        assert len(set(np.sign(steps))) == 1, key
    assert (np.diff([lab(linear(color))[0] for color in look.sequential]) > 3).all()
    middle = len(look.diverging) // 2
    away = [contrast(color, look.background) for color in look.diverging]
    assert away.index(min(away)) == middle


def colors(*families: str) -> list[str]:
    return theme.assign_colors([SimpleNamespace(family=family) for family in families])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("families", "expected"),
    [
        (["Adam", "LAMB"], ["blue", "red"]),
        (["LAMB", "AdamW"], ["red", "blue"]),
        (["LAMB", "LAMB"], ["red", "teal"]),
        (["Adam", "Adam", "SGD"], ["blue", "teal", "orange"]),
        (["Muon", "Adam"], ["orange", "blue"]),
        ([], []),
    ],
)
def test_runs_have_the_colour_of_their_optimizer(
    families: Sequence[str], expected: Sequence[str]
) -> None:
    assert colors(*families) == expected


def test_colours_repeat_if_there_are_more_runs_than_colours() -> None:
    found = colors(*["Adam"] * 11)
    assert len(set(found[:8])) == 8
    assert set(found) <= set(THEMES["light"].runs)


def test_mixing_colours() -> None:
    assert theme.mix("#000000", "#ffffff", 0.5) == "#808080"
    assert theme.color_at(("#000000", "#0000ff", "#ffffff"), 0.5) == "#0000ff"
    assert theme.color_at(("#000000", "#ffffff"), 7) == "#ffffff"
    assert theme.alpha("#0102ff", 0.25) == "rgba(1,2,255,0.25)"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<b>fc</b>", "&lt;b&gt;fc&lt;/b&gt;"),
        ("%{y} $x$", "%&#123;y} &#36;x&#36;"),
        ("a\nb", "a b"),
        ("blocks.3.attention.weight", "blocks.3.attention.weight"),
    ],
)
def test_names_are_escaped(text: str, shown: str) -> None:
    assert theme.plain(text) == shown


def test_long_names_are_shortened_in_the_middle() -> None:
    assert theme.plain("encoder.layers.11.weight", 13) == "encode…weight"
    assert len(theme.plain("x" * 100, 13)) == 13


def test_an_unknown_theme_raises() -> None:
    with pytest.raises(UsageError, match="light, dark"):
        theme.theme_of("sepia")


def test_without_plotly_data_functions_work_and_drawing_names_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    assert debias_data().panels
    with pytest.raises(MissingDependencyError, match=r"trustlens-optim\[figures\]"):
        debias()


def test_importing_the_figures_does_not_import_plotly() -> None:
    code = "import sys, trustlens.figures as f; f.ridgeline_data; print('plotly' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_plotly_does_not_offer_to_upload() -> None:
    assert theme.PLOTLY_CONFIG["showSendToCloud"] is False
    assert theme.PLOTLY_CONFIG["plotlyServerURL"] == ""
