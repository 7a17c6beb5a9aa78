"""Test the library: ids instead of paths, one search per tick, removal of deleted runs."""

from __future__ import annotations

import gc
import os
import shutil
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from dash import no_update

from tests.support.runs import make_run
from trustlens_dashboard.frame import live
from trustlens_dashboard.library import Library
from trustlens_dashboard.pages.runs import view as runs_page
from trustlens_dashboard.selection import Selection

Maker = Callable[..., Path]


def ids(library: Library) -> dict[str, str]:
    return {entry.name: entry.id for entry in library.snapshot().entries}


def test_ids_are_stable_and_do_not_contain_names_or_paths(
    synthetic_run: Maker, tmp_path: Path
) -> None:
    synthetic_run("secret-name", steps=1)
    first, second = (Library(tmp_path).snapshot().entries[0] for _ in range(2))
    assert first.id == second.id
    assert "secret" not in first.id
    assert str(tmp_path) not in first.id


@pytest.mark.parametrize(
    "path", ["../outside", "/etc", ".", "..", "inside", "inside/../../outside"]
)
def test_text_from_the_browser_is_never_used_as_a_path(tmp_path: Path, path: str) -> None:
    make_run(tmp_path / "outside", steps=1)
    make_run(tmp_path / "root" / "inside", steps=1)
    assert Library(tmp_path / "root").snapshot().chosen(path, str(tmp_path / path)) == []


def test_a_link_to_a_run_outside_the_root_is_ignored(tmp_path: Path) -> None:
    outside = make_run(tmp_path / "outside", steps=1)
    root = tmp_path / "root"
    make_run(root / "inside", steps=1)
    (root / "link").symlink_to(outside, target_is_directory=True)
    assert "outside" not in ids(Library(root))


def test_the_root_may_be_a_run_itself(synthetic_run: Maker) -> None:
    path = synthetic_run("alone", steps=2)
    entries = Library(path).snapshot().entries
    assert [entry.name for entry in entries] == ["alone"]


def test_the_listing_follows_new_replaced_and_removed_runs(
    synthetic_run: Maker, tmp_path: Path
) -> None:
    library = Library(tmp_path / "later")
    assert library.snapshot().listing() == []
    make_run(tmp_path / "later" / "one", steps=1)
    before = library.snapshot().listing()
    assert [row[1] for row in before] == ["one"]
    shutil.rmtree(tmp_path / "later" / "one")
    assert library.snapshot().listing() == []
    make_run(tmp_path / "later" / "one", steps=1, name="replaced")
    assert [row[1] for row in library.snapshot().listing()] == ["replaced"]
    assert library.snapshot().listing() != before


def test_a_damaged_run_is_an_entry_with_its_error(synthetic_run: Maker, tmp_path: Path) -> None:
    synthetic_run("good", steps=1)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("{ nonsense")
    bad, good = Library(tmp_path).snapshot().entries
    assert (bad.name, bad.run) == ("bad", None)
    assert "run.json" in bad.error
    assert good.run is not None


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which each folder is appended when Python lists it."""
    folders: list[str] = []
    scandir = os.scandir

    def counting(path: Any = ".") -> Any:
        folders.append(os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counting)
    return folders


def test_an_idle_tick_searches_the_folder_once(
    synthetic_run: Maker, tmp_path: Path, listed: list[str]
) -> None:
    for name in ("one", "two", "three"):
        synthetic_run(f"group/{name}", steps=2)
    library = Library(tmp_path, max_age=60)
    search = Selection(*list(ids(library).values())[:2]).search()
    listing, cursor, _ = live.updates(library.snapshot(), search, None, None)
    _, version, *_ = runs_page.update_rows(library.snapshot(), None)
    library._found_at -= 61  # the next tick
    listed.clear()
    assert live.updates(library.snapshot(), search, listing, cursor) == (no_update,) * 3
    assert runs_page.update_rows(library.snapshot(), version) == (no_update,) * 4
    # find_runs lists the root twice: the first time to raise an error if it is not readable.
    assert listed.count(str(tmp_path)) == 2
    assert listed.count(str(tmp_path / "group")) == 1
    tables = [path for path in listed if path.endswith("layers")]
    assert sorted(tables) == [str(tmp_path / "group" / name / "layers")
                              for name in ("one", "three", "two")]  # fmt: skip
    listed.clear()
    live.updates(library.snapshot(), search, listing, cursor)
    assert listed == []


def test_concurrent_callers_share_a_search(
    synthetic_run: Maker, tmp_path: Path, listed: list[str]
) -> None:
    synthetic_run("run", steps=1)
    library = Library(tmp_path, max_age=60)
    with ThreadPoolExecutor(8) as pool:
        snapshots = list(pool.map(lambda _: library.snapshot(), range(8)))
    assert len(set(map(id, snapshots))) == 1
    assert listed.count(str(tmp_path)) == 2


def test_a_snapshot_is_replaced_after_max_age(synthetic_run: Maker, tmp_path: Path) -> None:
    library = Library(tmp_path, max_age=60)
    assert library.snapshot().entries == ()
    synthetic_run("run", steps=1)
    assert library.snapshot().entries == ()
    library._found_at -= 61
    assert [entry.name for entry in library.snapshot().entries] == ["run"]


def test_a_removed_run_and_its_results_are_released(synthetic_run: Maker, tmp_path: Path) -> None:
    synthetic_run("kept", steps=3)
    path = synthetic_run("removed", steps=3)
    library = Library(tmp_path)
    runs_page.update_rows(library.snapshot(), None)
    run = weakref.ref(library.snapshot().chosen(ids(library)["removed"])[0])
    shutil.rmtree(path)
    rows, *_ = runs_page.update_rows(library.snapshot(), None)
    assert [row["name"] for row in rows] == ["kept"]
    gc.collect()
    assert run() is None
