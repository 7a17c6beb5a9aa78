"""Test the runs page: its rows, when they are sent, and the selection by ticking."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dash import no_update

from trustlens.store.reader import fingerprint
from trustlens_dashboard import library as library_module
from trustlens_dashboard.library import Library
from trustlens_dashboard.pages import all_pages
from trustlens_dashboard.pages.runs import table
from trustlens_dashboard.pages.runs import view as page
from trustlens_dashboard.selection import Selection

Maker = Callable[..., Path]
LAMB = "trustlens.optim.lamb.Lamb"


def test_the_list_has_a_row_for_each_run(synthetic_run: Maker, tmp_path: Path) -> None:
    weight = np.full((60, 8), 2.0)
    weight[40:, 3] *= np.exp(np.arange(20))
    metrics = {"loss": np.linspace(2, 0.5, 60), "train/accuracy": np.linspace(0, 0.9, 60)}
    synthetic_run("adam", steps=60, metrics=metrics, lr=0.02)
    synthetic_run("lamb", steps=60, optimizer=LAMB, values={"weight_norm": weight}, close=False)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.json").write_text("{")
    adam, lamb, torn = table.rows(Library(tmp_path).snapshot())
    assert {key: adam[key] for key in ("name", "optimizer", "lr", "layers", "steps", "status")} == {
        "name": "adam", "optimizer": "Adam", "lr": 0.02, "layers": 8, "steps": 60,
        "status": "closed",
    }  # fmt: skip
    assert (adam["loss"], adam["accuracy"]) == (0.5, 0.9)
    assert lamb["status"] == "recording"
    assert "block1.bias" in lamb["verdict"]
    assert lamb["findings"] > 0
    assert torn["status"] == "damaged"
    assert "run.json" in torn["verdict"]


def test_a_run_without_read_permission_does_not_hide_the_others(
    synthetic_run: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_for_bad(directory: Path) -> str:
        if directory.name == "bad":
            raise PermissionError(13, "Permission denied", "bad/layers")
        return fingerprint(directory)

    synthetic_run("bad")
    synthetic_run("good")
    monkeypatch.setattr(library_module, "fingerprint", raise_for_bad)
    (bad, good), version, *_ = page.update_rows(Library(tmp_path).snapshot(), None)
    assert (bad["status"], good["status"]) == ("damaged", "closed")
    assert bad["verdict"] == "[Errno 13] Permission denied: 'bad/layers'"
    assert [len(row) for row in version] == [2, 3]


def test_an_unchanged_list_is_not_sent_again(synthetic_run: Maker, tmp_path: Path) -> None:
    library = Library(tmp_path)
    rows, version, panel, style = page.update_rows(library.snapshot(), None)
    assert (rows, style) == ([], {"display": "none"})
    assert "trustlens.record(" in str(panel)
    synthetic_run("first", steps=2)
    rows, version, panel, style = page.update_rows(library.snapshot(), version)
    assert ([row["name"] for row in rows], panel, style) == (["first"], None, {})
    assert page.update_rows(library.snapshot(), json.loads(json.dumps(version))) == (no_update,) * 4


def test_ticked_rows_are_the_selected_runs() -> None:
    def tick(search: str, *names: str) -> Any:
        return page.select_runs(search, [{"id": name} for name in names])

    start = Selection("x", "y", "grad_norm").search()
    assert tick(start, "x", "y") is no_update
    assert Selection.parse(tick(start, "x")) == Selection("x", "", "grad_norm")
    assert Selection.parse(tick(start, "y")) == Selection("y", "", "grad_norm")
    assert Selection.parse(tick(start, "x", "y", "z")) == Selection("y", "z", "grad_norm")
    assert tick(start) is no_update
    assert page.select_runs(start, {"ids": ["x", "y"]}) is no_update


def test_the_links_lead_to_existing_pages(synthetic_run: Maker, tmp_path: Path) -> None:
    synthetic_run("one", steps=1)
    snapshot = Library(tmp_path).snapshot()
    search = Selection(snapshot.entries[0].id, "").search()
    _, (_, *links) = page.tick_rows(snapshot, search, None)
    paths = {link.href.removesuffix(search) for link in links}
    assert len(paths) == 2
    assert paths <= {each.path for each in all_pages()}
