"""Test the updates that a tick reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from dash import no_update

from trustlens_dashboard.frame import live
from trustlens_dashboard.library import Library
from trustlens_dashboard.selection import Selection

Maker = Callable[..., Path]
LAMB = "trustlens.optim.lamb.Lamb"


def test_a_tick_reports_only_changes(synthetic_run: Maker, tmp_path: Path) -> None:
    synthetic_run("live", steps=5, close=False)
    library = Library(tmp_path)
    search = Selection(library.snapshot().entries[0].id, "").search()
    listing, cursor, badges = live.updates(library.snapshot(), search, None, None)
    assert "live: recording, step 5" in str(badges)
    listing, cursor = json.loads(json.dumps([listing, cursor]))
    assert live.updates(library.snapshot(), search, listing, cursor) == (no_update,) * 3
    synthetic_run("other", steps=1)
    changed = live.updates(library.snapshot(), search, listing, cursor)
    assert [row[1] for row in changed[0]] == ["live", "other"]
    assert changed[1] is no_update
