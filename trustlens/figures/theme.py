"""Colours, fonts and layout of the figures and the dashboard.

Plotly is imported only when a figure is drawn (:func:`graph_objects`).
The colours of runs differ in hue and lightness, so that viewers with a colour-vision deficiency can
distinguish them. A ramp is a sequence of colours between which a colour is interpolated; its
lightness is monotonic. Tests measure both properties.
"""

from __future__ import annotations

import html
import itertools
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from trustlens.errors import MissingDependencyError, UsageError
from trustlens.families import ADAM, ADAMAX, ADAMW, LAMB, LARS, NADAM, RADAM, SGD

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from trustlens.analysis.run import Run

ThemeName = Literal["light", "dark"]

FONT: Final = (
    "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Liberation Sans', "
    "'DejaVu Sans', sans-serif"
)

PLOTLY_CONFIG: Final[dict[str, Any]] = {
    "displaylogo": False,
    "showSendToCloud": False,  # Plotly 7 offers to upload the chart by default
    "plotlyServerURL": "",
    "responsive": True,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
    "toImageButtonOptions": {"scale": 2},
}
"""The argument ``config`` for showing or exporting a Plotly figure: no logo, no upload button."""


@dataclass(frozen=True, slots=True)
class RunColor:
    """The colours of one run.

    ``line`` is the colour of the run's lines and marks. ``ramp`` contains the colours between which
    the colour of each step is interpolated, from the first step to the last.
    """

    line: str
    ramp: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Theme:
    """The colours of one theme, as hex.

    ``panel`` is the colour of plotting areas and of the floor of a 3D scene, ``ink`` that of text,
    ``muted`` that of labels, ``alert`` that of marks for values out of view or not finite.
    ``crest`` is mixed with the colour of a ridge: the result is the colour of the line along the
    ridge's top.
    ``sequential`` is a colour scale from small to large values. ``diverging`` is a colour scale
    from values below a centre to values above this centre.
    """

    name: ThemeName
    background: str
    panel: str
    ink: str
    muted: str
    grid: str
    axis: str
    accent: str
    alert: str
    crest: str
    runs: Mapping[str, RunColor]
    sequential: tuple[str, ...]
    diverging: tuple[str, ...]


def _stops(text: str) -> tuple[str, ...]:
    return tuple(f"#{stop}" for stop in text.split())


def _runs(rows: Mapping[str, tuple[str, str]]) -> dict[str, RunColor]:
    return {key: RunColor(f"#{line}", _stops(ramp)) for key, (line, ramp) in rows.items()}


# Nine colours of matplotlib's viridis (CC0).
_VIRIDIS: Final = _stops("440154 472d7b 3b528b 2c728e 21918c 28ae80 5ec962 addc30 fde725")

_LIGHT: Final = Theme(
    name="light",
    background="#ffffff",
    panel="#f8f9fb",
    ink="#15171c",
    muted="#5c6373",
    grid="#e7e9ee",
    axis="#b6bcc8",
    accent="#2b5fd0",
    alert="#c2256b",
    crest="#ffffff",
    runs=_runs(
        {
            "blue": ("2b62d1", "c3d3ee 8fb0e6 4f83d6 2f58c0 3b2f8f 45165a"),
            "red": ("c8321f", "f6dcc6 f2ae86 e6764f cc4030 96202b 560f20"),
            "green": ("2f9e57", "cfe6cf 93cfa0 4caf78 1f8a5b 106248 0a3d35"),
            "purple": ("5a1f9e", "ddd1f0 bba3e3 9470d3 7244bb 4f2690 2f1260"),
            "orange": ("c08a00", "f5e3b8 edc56f dc9c2e b97410 864e0c 542e0a"),
            "teal": ("0a7f92", "c6e6ea 8dcdd5 47adbb 158796 0f5f70 0c3b4c"),
            "pink": ("d65ba8", "f3d3e4 e5a0c6 d268a4 b23a82 7f2160 4e0f3e"),
            "grey": ("434a57", "d9dce2 b3b9c4 868e9d 5f6776 414856 262b35"),
        }
    ),
    sequential=_VIRIDIS,
    diverging=_stops("1f4e9c 5a8fcf a9c8e8 f1f1ee efb79c d6694a 9c2226"),
)

_DARK: Final = Theme(
    name="dark",
    background="#0f1116",
    panel="#141821",
    ink="#eceef3",
    muted="#9aa1b2",
    grid="#262b36",
    axis="#4b5262",
    accent="#6ea8fe",
    alert="#ff6fae",
    crest="#ffffff",
    runs=_runs(
        {
            "blue": ("5ea0ff", "16235a 1d3f95 2a6bd6 45a0f2 86d0fb e2f7ff"),
            "red": ("ff5f4a", "45102a 85182f cf3340 f7694f ffad73 fff0cf"),
            "green": ("45c98b", "0c332e 10594a 1d8f67 4cc589 9be8b0 effde0"),
            "purple": ("d2b4ff", "27155a 44218a 7040c8 a06cf0 cfa6fb f7e8ff"),
            "orange": ("f7c14d", "3c260c 6e430c b57414 eaa32f fbd074 fff6d6"),
            "teal": ("7fe7ea", "0a3040 0c5468 14879a 3bbcc6 8be3e2 e8fffa"),
            "pink": ("ff86c6", "41113a 75205f b73a8f ea67b4 fba5d4 ffe9f5"),
            "grey": ("8a92a2", "2b303b 4a5160 737b8b 9aa2b0 c6cbd4 f3f4f7"),
        }
    ),
    sequential=_VIRIDIS,
    diverging=_stops("9cc8ff 4f8fdf 2a5596 20242d 8f3a2c d9694c ffb79c"),
)

THEMES: Final[Mapping[str, Theme]] = {"light": _LIGHT, "dark": _DARK}
"""The themes by name."""

_FAMILIES: Final = {
    **dict.fromkeys((ADAM, ADAMW, NADAM, RADAM, ADAMAX), "blue"),
    LAMB: "red",
    LARS: "green",
    SGD: "orange",
}
_SECOND_OF_FAMILY: Final = {"blue": "orange", "red": "teal", "green": "purple", "orange": "purple"}
_FREE: Final = ("orange", "teal", "purple", "green", "pink", "blue", "red", "grey")


def theme_of(name: str) -> Theme:
    """Return the theme with this name.

    Raises
    ------
    UsageError
        If there is no such theme.
    """
    if name not in THEMES:
        raise UsageError(f"'{name}' is not a theme; choose one of: {', '.join(THEMES)}")
    return THEMES[name]


def assign_colors(runs: Sequence[Run]) -> list[str]:
    """Return each run's key in ``Theme.runs``, such as "blue" for Adam and "red" for LAMB.

    The first run of an optimizer family gets the colour of the family. Other runs get a contrasting
    colour if it is free, else the next free one. With more runs than colours, colours repeat.
    """
    families = [_FAMILIES.get(run.family) for run in runs]
    first = {families.index(key): key for key in families if key}
    taken, spare = set(first.values()), itertools.cycle(_FREE)
    chosen: list[str] = []
    for number, family in enumerate(families):
        key = first.get(number)
        if key is None:
            wanted = (_SECOND_OF_FAMILY.get(family or "", _FREE[0]), *_FREE)
            key = next((color for color in wanted if color not in taken), None) or next(spare)
        taken.add(key)
        chosen.append(key)
    return chosen


def color_at(ramp: Sequence[str], share: float) -> str:
    """Return the colour at the fraction ``share`` (0 to 1) of a ramp, as hex."""
    position = min(max(share, 0.0), 1.0) * (len(ramp) - 1)
    first = min(int(position), len(ramp) - 2)
    return mix(ramp[first], ramp[first + 1], position - first)


def mix(first: str, second: str, share: float) -> str:
    """Return ``first`` mixed with the fraction ``share`` (0 to 1) of ``second``, as hex."""
    pairs = zip(_rgb(first), _rgb(second), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def alpha(color: str, share: float) -> str:
    """Return a hex colour with opacity ``share`` (0 to 1), as ``rgba(…)``."""
    return f"rgba({','.join(str(part) for part in _rgb(color))},{share:g})"


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def colorscale(ramp: Sequence[str]) -> list[tuple[float, str]]:
    """Return a ramp as a Plotly colour scale."""
    return [(i / (len(ramp) - 1), color) for i, color in enumerate(ramp)]


def plain(text: str, most: int | None = None) -> str:
    """Escape a text, so that Plotly shows it literally.

    Plotly interprets some HTML, ``$…$`` as TeX, and ``%{…}`` in hover templates.

    Parameters
    ----------
    text : str
        Text from a run, such as the name of a layer.
    most : int, optional
        Maximum number of characters before escaping; longer texts are shortened in the middle.
    """
    text = " ".join(text.split())
    if most is not None and len(text) > most:
        text = f"{text[: most // 2]}…{text[-(most - most // 2 - 1) :]}"
    return html.escape(text).replace("$", "&#36;").replace("%{", "%&#123;")


def graph_objects() -> Any:
    """Return ``plotly.graph_objects``.

    Raises
    ------
    MissingDependencyError
        If Plotly is not installed.
    """
    try:
        import plotly.graph_objects  # noqa: PLC0415 — data functions work without Plotly
    except ModuleNotFoundError:
        raise MissingDependencyError("figures", "plotly", "figures") from None
    return plotly.graph_objects


def new_figure(theme: Theme, title: str, subtitle: str, *, height: int = 520) -> go.Figure:
    """Return an empty figure in the theme; ``title`` and ``subtitle`` must be escaped."""
    axis = {
        "gridcolor": theme.grid,
        "linecolor": theme.axis,
        "zerolinecolor": theme.grid,
        "tickcolor": theme.axis,
        "tickfont": {"color": theme.muted, "size": 12},
        "title": {"font": {"color": theme.muted, "size": 13}, "standoff": 12},
        "exponentformat": "power",
        "automargin": True,
    }
    heading = {
        "text": f"<b>{title}</b>",
        "subtitle": {"text": subtitle, "font": {"size": 13, "color": theme.muted}},
        "font": {"size": 18, "color": theme.ink},
        "x": 0,
        "xref": "container",
        "xanchor": "left",
        "y": 1,
        "yref": "container",
        "yanchor": "top",
        "pad": {"t": 20, "l": 24},
    }
    layout = {
        "font": {"family": FONT, "size": 13, "color": theme.ink},
        "paper_bgcolor": theme.background,
        "plot_bgcolor": theme.background,
        "xaxis": axis,
        "yaxis": axis,
        "hoverlabel": {
            "bgcolor": theme.panel,
            "bordercolor": theme.axis,
            "font": {"family": FONT, "color": theme.ink, "size": 12},
            "align": "left",
            "namelength": -1,
        },
        "legend": {"font": {"color": theme.ink}, "bgcolor": "rgba(0,0,0,0)"},
        "modebar": {"color": theme.axis, "activecolor": theme.accent, "bgcolor": "rgba(0,0,0,0)"},
    }
    figure = graph_objects().Figure(layout={"template": {"layout": layout}})
    figure.update_layout(title=heading, height=height, margin={"l": 70, "r": 40, "t": 92, "b": 64})
    return figure


def write_message(
    figure: go.Figure, text: str, theme: Theme, *, x: float = 0.5, y: float = 0.5
) -> None:
    """Write an escaped message into a figure, centred at ``x``, ``y`` in paper coordinates."""
    lines = textwrap.wrap(text, 44, break_long_words=False, break_on_hyphens=False)
    figure.add_annotation(
        text="<br>".join(lines),
        x=x,
        y=y,
        xref="paper",
        yref="paper",
        showarrow=False,
        font={"size": 15, "color": theme.muted},
    )
