"""Contents of the debias and smoothing page: functions that the callbacks call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trustlens.errors import TrustlensError
from trustlens.figures._debias import debias
from trustlens.figures._smoothing import smoothing
from trustlens.figures.theme import ThemeName
from trustlens_dashboard.components import empty
from trustlens_dashboard.components.graph import message_figure, with_style
from trustlens_dashboard.library import Snapshot
from trustlens_dashboard.selection import Selection

BETAS: Final = ("0.5", "0.8", "0.9", "0.95", "0.99", "0.999")
EXAMPLE: Final = "example"


def series_options(snapshot: Snapshot, search: str | None) -> list[dict[str, str]]:
    """Return the series that can be smoothed: an example, and the metrics of both runs."""
    options = [{"value": EXAMPLE, "label": "a noisy example"}]
    selection = Selection.parse(search)
    for key, run_id in (("a", selection.a), ("b", selection.b)):
        for run in snapshot.chosen(run_id):
            try:
                names = run.metrics()["name"].unique()
            except TrustlensError:
                continue  # a damaged table; other pages report the error
            options += [
                {"value": f"{key}:{name}", "label": f"{name} of {run.name}"} for name in names
            ]
    return options


def smoothed(
    snapshot: Snapshot,
    search: str | None,
    *,
    betas: Sequence[str],
    series: str | None,
    debiased: str,
    theme: ThemeName,
) -> tuple[Any, dict[str, str]]:
    """Return the smoothing figure and its style."""
    chosen = sorted(float(beta) for beta in betas)
    if not chosen:
        return message_figure("Choose a β.", theme), {"height": "200px"}
    debias_factor = {"both": None, "with": True, "without": False}[debiased]
    try:
        values = _series(snapshot, search, series or EXAMPLE)
        figure = smoothing(values, chosen, debias=debias_factor, theme=theme)
    except TrustlensError as error:
        figure = message_figure(str(error), theme)
    return with_style(figure, search, series, debiased)


def _series(snapshot: Snapshot, search: str | None, series: str) -> NDArray[np.float64] | None:
    """Return the values of the metric that ``series`` names, or None.

    ``series`` is, for example, "a:loss" for the metric "loss" of run A. The result is None if
    ``series`` is the example, or if the named run is not selected or cannot be read.
    """
    key, _, name = series.partition(":")
    selection = Selection.parse(search)
    runs = snapshot.chosen({"a": selection.a, "b": selection.b}.get(key))
    if not runs:
        return None
    metrics = runs[0].metrics()
    return metrics.loc[metrics["name"] == name, "value"].to_numpy(np.float64)


def factors(
    snapshot: Snapshot, search: str | None, *, betas: Sequence[str], recorded: str, theme: ThemeName
) -> tuple[Any, dict[str, str]]:
    """Return the figure of the debias factors and its style.

    If a run is chosen, the figure has a panel for each β of the run and shows the recorded
    factors too.
    """
    selection = Selection.parse(search)
    runs = snapshot.chosen({"a": selection.a, "b": selection.b}.get(recorded))
    chosen = sorted(float(beta) for beta in betas)
    try:
        if runs:
            figure = debias(run=runs[0], theme=theme)
        elif recorded != "none":
            figure = message_figure(empty.no_run(snapshot), theme)
        else:
            figure = debias(chosen or None, theme=theme)
    except TrustlensError as error:
        figure = message_figure(str(error), theme)
    return with_style(figure, search, recorded, betas)
