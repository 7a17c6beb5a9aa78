"""Panels of a figure, their captions and axes, and texts about a quantity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trustlens.figures.axis import number, ticks
from trustlens.figures.theme import Theme, plain
from trustlens.schema import Quantity

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, slots=True)
class Panel:
    """The area of a panel in paper coordinates (0 to 1), and the ``top`` of its caption."""

    x: tuple[float, float]
    y: tuple[float, float]
    top: float


def panels(
    count: int, *, columns: int = 2, gap: float = 0.06, head: float = 0.12, foot: float = 0.0
) -> list[Panel]:
    """Return ``count`` panels in rows of at most ``columns`` panels.

    ``gap`` is the space between columns. ``head`` and ``foot`` are fractions of the height of a
    row: the space above a panel for its caption, and below it for the labels of its axis. The last
    row has no foot.
    """
    columns = min(count, columns)
    rows = -(-count // columns)
    width = (1 - gap * (columns - 1)) / columns
    height = 1 / (rows - foot)  # the last row uses the margin of the figure as its foot
    found: list[Panel] = []
    for place in range(count):
        row, column = divmod(place, columns)
        left, top = column * (width + gap), 1 - row * height
        bottom = max(top - (1 - foot) * height, 0.0)
        found.append(Panel((left, left + width), (bottom, top - head * height), top))
    return found


def step_ticks(first: float, last: float) -> dict[str, Any]:
    """Return tick options of a time axis: one tick per step for short ranges, else 7 ticks."""
    return {"dtick": 1} if last - first < 6 else {"nticks": 7}


def whole_ticks(first: float, last: float) -> dict[str, Any]:
    """Return ticks at ``first`` and at whole steps up to ``last``.

    No tick is in the margins that the range of the axis may have beyond these steps.
    """
    even = [(step, text) for step, text in ticks(first, last, "linear") if step == round(step)]
    clearance = first + 0.06 * (last - first)
    shown = [(first, number(first)), *(pair for pair in even if pair[0] > clearance)]
    return {"tickvals": [step for step, _ in shown], "ticktext": [text for _, text in shown]}


def quantity_heading(quantity: Quantity) -> tuple[str, str]:
    """Return title and subtitle of a figure that shows a quantity's distribution over layers."""
    title = f"{sentence_case(quantity.title)} {plain(quantity.symbol)}"
    return title, f"distribution over the layers · {plain(quantity.formula)}"


def sentence_case(text: str) -> str:
    """Return the text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def quantity_axis(quantity: Quantity) -> str:
    """Return the title of an axis that shows a quantity."""
    return f"{plain(quantity.title)} {plain(quantity.symbol)}"


def run_caption(
    figure: go.Figure, label: str, panel: Panel, theme: Theme, *, color: str, below: str
) -> None:
    """Write the label of a run above its panel, with a square in its colour.

    ``color`` is the run's key in ``Theme.runs``, ``below`` the second line of the caption.
    """
    square = f'<span style="color:{theme.runs[color].line}">■</span>'
    caption(figure, f"{square} <b>{plain(label, 44)}</b>", below, panel, theme)


def caption(figure: go.Figure, text: str, below: str, panel: Panel, theme: Theme) -> None:
    """Write two lines above a panel. Both must be escaped; ``below``, the second, may be empty."""
    muted = f'<br><span style="color:{theme.muted};font-size:12px">{below}</span>'
    figure.add_annotation(
        text=text + muted if below else text,
        x=panel.x[0],
        y=panel.top,
        xref="paper",
        yref="paper",
        xanchor="left",
        yanchor="top",
        align="left",
        showarrow=False,
        font={"size": 14, "color": theme.ink},
    )
