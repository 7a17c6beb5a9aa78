"""Test that the toolbar and the URL show the same selection."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dash import no_update

from trustlens_dashboard.frame import toolbar
from trustlens_dashboard.library import Library
from trustlens_dashboard.selection import Selection

Maker = Callable[..., Path]
LAMB = "trustlens.optim.lamb.Lamb"


def test_the_toolbar_and_the_url_agree(synthetic_run: Maker, tmp_path: Path) -> None:
    synthetic_run("adam", steps=2)
    synthetic_run("lamb", steps=2, optimizer=LAMB)
    snapshot = Library(tmp_path).snapshot()
    search, a, options, b, *_ = toolbar.synchronize(snapshot, "", None)
    assert Selection.parse(search) == Selection(a, b)
    assert [option["label"] for option in options] == [
        "adam · Adam, lr 0.01",
        "lamb · LAMB, lr 0.01",
    ]
    again = toolbar.synchronize(snapshot, search, None)
    assert again[0] is no_update
    changed = toolbar.synchronize(snapshot, search, Selection(b, "", "grad_norm"))
    assert Selection.parse(changed[0]) == Selection(b, "", "grad_norm")
    assert (changed[1], changed[3], changed[5], changed[6]) == (b, None, "grad_norm", "")
    assert changed[7] == {"background": "var(--tl-run-red)"}
