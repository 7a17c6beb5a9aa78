"""Test the layers page: its table, and choosing a layer by a click."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trustlens_dashboard.library import Library, Snapshot
from trustlens_dashboard.pages.layers import view as page
from trustlens_dashboard.selection import Selection

Maker = Callable[..., Path]
LAMB = "trustlens.optim.lamb.Lamb"


def snapshot_of(tmp_path: Path) -> tuple[Snapshot, str]:
    """Return a snapshot of a folder and the query that selects its first two runs."""
    snapshot = Library(tmp_path).snapshot()
    chosen = [entry.id for entry in snapshot.entries if entry.run is not None][:2]
    return snapshot, Selection(*chosen, *[""] * (2 - len(chosen))).search()


def test_the_table_has_the_values_at_the_last_step(synthetic_run: Maker, tmp_path: Path) -> None:
    weight = np.full((60, 4), 2.0)
    weight[40:, 2] *= np.exp(np.arange(20))
    path = synthetic_run("run", layers=4, steps=60, values={"weight_norm": weight})
    snapshot, search = snapshot_of(tmp_path)
    verdict, findings, style, title, rows = page.overview(snapshot, search, "a")
    assert "block1.weight" in verdict.children
    assert findings[0]["layer"] == "block1.weight"
    assert style == {}
    assert title == f"The layers of {path.name} at step 60"
    assert [row["weight_norm"] for row in rows] == pytest.approx(weight[-1].tolist())
    assert [bool(row["finding"]) for row in rows] == [False, False, True, False]
    assert page.layer_options(snapshot, search, None)[1] == "block1.weight"


def test_a_click_chooses_its_layer(synthetic_run: Maker, tmp_path: Path) -> None:
    synthetic_run("run", layers=["<a>", "b$c"], steps=3)
    snapshot, search = snapshot_of(tmp_path)
    figure, _ = page.heatmap_figure(snapshot, search, "a", "light")
    for shown, name in zip(figure.data[0].y, ["<a>", "b$c"], strict=True):
        event = {"points": [{"y": shown}]}
        assert page.clicked_layer(snapshot, search, event) == name
    assert page.clicked_layer(snapshot, search, {"rowId": "b$c"}) == "b$c"
    assert page.clicked_layer(snapshot, search, None) is None
    assert page.choose_layer(snapshot, search, {"rowId": "b$c"}, "<a>")[1] == "b$c"
    assert page.choose_layer(snapshot, search, None, "b$c")[1] == "b$c"
    assert page.layer_options(snapshot, search, "gone")[1] == "<a>"
