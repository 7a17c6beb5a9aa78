"""What a tick reports."""

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


def test_news_only_when_there_is_something_new(synthetic_run: Maker, tmp_path: Path) -> None:
    synthetic_run("live", steps=5, close=False)
    library = Library(tmp_path)
    search = Selection(library.snapshot().entries[0].id, "").search()
    listing, cursor, words = live.news(library.snapshot(), search, None, None)
    assert "live: recording, step 5" in str(words)
    listing, cursor = json.loads(json.dumps([listing, cursor]))
    assert live.news(library.snapshot(), search, listing, cursor) == (no_update,) * 3
    synthetic_run("other", steps=1)
    news = live.news(library.snapshot(), search, listing, cursor)
    assert [row[1] for row in news[0]] == ["live", "other"]
    assert news[1] is no_update
