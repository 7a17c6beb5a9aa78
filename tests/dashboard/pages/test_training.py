"""Test the training page: curves, rows, and when the zoom is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trustlens_dashboard.library import Library, Snapshot
from trustlens_dashboard.pages.training import view as page
from trustlens_dashboard.selection import Selection

Maker = Callable[..., Path]
LAMB = "trustlens.optim.lamb.Lamb"


def snapshot_of(tmp_path: Path) -> tuple[Snapshot, str]:
    """Return a snapshot of a folder and the query that selects its first two runs."""
    snapshot = Library(tmp_path).snapshot()
    chosen = [entry.id for entry in snapshot.entries if entry.run is not None][:2]
    return snapshot, Selection(*chosen, *[""] * (2 - len(chosen))).search()


def test_the_chosen_runs_and_metrics_are_shown(synthetic_run: Maker, tmp_path: Path) -> None:
    for name in ("one", "three", "two"):
        synthetic_run(name, steps=9)
    snapshot = Library(tmp_path).snapshot()
    ids = [entry.id for entry in snapshot.entries]
    search = Selection(ids[0], ids[1]).search()
    assert [o["value"] for o in page.options(snapshot, search)] == [ids[2]]
    figure, _, names, rows = page.picture(
        snapshot, search, more=[ids[2], ids[0]], names=["loss", "gone"], scale="auto", theme="light"
    )
    assert names == ["loss", "test_accuracy"]
    lines = [trace for trace in figure.data if trace.mode and "lines" in trace.mode]
    assert len(lines) == 3
    assert len(rows) == 6
    assert rows[0]["last"] == pytest.approx(2.3 * np.exp(-9 / 20))


def test_zoom_is_kept_until_the_view_changes(synthetic_run: Maker, tmp_path: Path) -> None:
    synthetic_run("run", steps=30)
    snapshot, search = snapshot_of(tmp_path)

    def revision(**options: Any) -> str:
        chosen = {"more": None, "names": None, "scale": "auto", "theme": "light", **options}
        return page.picture(snapshot, search, **chosen)[0].layout.uirevision

    assert revision() == revision(theme="dark")
    assert revision() != revision(names=["loss"])
