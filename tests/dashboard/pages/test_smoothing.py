"""Test the debias and smoothing page: the series that it offers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from trustlens_dashboard.library import Library, Snapshot
from trustlens_dashboard.pages.smoothing import view as page
from trustlens_dashboard.selection import Selection

Maker = Callable[..., Path]
LAMB = "trustlens.optim.lamb.Lamb"


def snapshot_of(tmp_path: Path) -> tuple[Snapshot, str]:
    """Return a snapshot of a folder and the query that selects its first two runs."""
    snapshot = Library(tmp_path).snapshot()
    chosen = [entry.id for entry in snapshot.entries if entry.run is not None][:2]
    return snapshot, Selection(*chosen, *[""] * (2 - len(chosen))).search()


def test_a_metric_of_the_run_can_be_smoothed(synthetic_run: Maker, tmp_path: Path) -> None:
    synthetic_run("run", steps=30)
    snapshot, search = snapshot_of(tmp_path)
    options = page.series_options(snapshot, search)
    assert [option["value"] for option in options] == ["example", "a:loss", "a:test_accuracy"]
    figure, _ = page.smoothed(
        snapshot, search, betas=["0.9"], series="a:loss", debiased="with", theme="light"
    )
    np.testing.assert_allclose(figure.data[0].y, 2.3 * np.exp(-np.arange(1, 31) / 20))
