"""Which runs are looked at, and how the library finds them without trusting the browser."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.runs import make_run
from trustlens.schema import QUANTITIES
from trustlens_dashboard.library import Library
from trustlens_dashboard.selection import Selection, settle

Maker = Callable[..., Path]
LAMB = "trustlens.optim.lamb.Lamb"


def ids(library: Library) -> dict[str, str]:
    return {entry.name: entry.id for entry in library.entries()}


@given(
    st.one_of(st.none(), st.text(max_size=20)),
    st.one_of(st.none(), st.text(max_size=20)),
    st.sampled_from(list(QUANTITIES)),
)
def test_the_address_gives_back_what_was_put_into_it(
    a: str | None, b: str | None, quantity: str
) -> None:
    selection = Selection(a, b, quantity)
    assert Selection.parse(selection.search()) == selection


@pytest.mark.parametrize("search", [None, "", "?", "?q=nonsense", "?a=&q=%00", "?&&==&q"])
def test_a_strange_address_is_the_default(search: str | None) -> None:
    selection = Selection.parse(search)
    assert selection.quantity == "trust_ratio"
    assert not selection.a


def test_defaults_are_adam_and_lamb_at_the_same_rate(synthetic_run: Maker, tmp_path: Path) -> None:
    synthetic_run("adam-0.01", steps=3)
    synthetic_run("lamb-0.1", steps=3, optimizer=LAMB, lr=0.1)
    synthetic_run("lamb-0.01", steps=3, optimizer=LAMB)
    synthetic_run("sgd-0.01", steps=3, optimizer="torch.optim.sgd.SGD")
    library = Library(tmp_path)
    settled = settle(Selection(), library.entries())
    named = {run_id: name for name, run_id in ids(library).items()}
    assert (named[settled.a or ""], named[settled.b or ""]) == ("adam-0.01", "lamb-0.01")


def test_what_was_chosen_stays(synthetic_run: Maker, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        synthetic_run(name, steps=2)
    library = Library(tmp_path)
    known = ids(library)
    assert settle(Selection(known["c"], ""), library.entries()) == Selection(known["c"], "")
    chosen = Selection(known["b"], known["a"], "grad_norm")
    assert settle(chosen, library.entries()) == chosen


def test_a_run_that_is_gone_gives_way(synthetic_run: Maker, tmp_path: Path) -> None:
    synthetic_run("a", steps=2)
    gone = synthetic_run("gone", steps=2)
    library = Library(tmp_path)
    known = ids(library)
    shutil.rmtree(gone)
    settled = settle(Selection(known["gone"], known["a"]), library.entries())
    assert known["gone"] not in (settled.a, settled.b)
    assert known["a"] in (settled.a, settled.b)


def test_no_runs_no_selection(tmp_path: Path) -> None:
    assert settle(Selection(), Library(tmp_path / "missing").entries()) == Selection(None, None)


def test_ids_say_nothing_of_the_disk_and_stay(synthetic_run: Maker, tmp_path: Path) -> None:
    synthetic_run("secret-name", steps=1)
    first, second = (Library(tmp_path).entries()[0] for _ in range(2))
    assert first.id == second.id
    assert "secret" not in first.id
    assert str(tmp_path) not in first.id


@pytest.mark.parametrize(
    "path", ["../outside", "/etc", ".", "..", "inside", "inside/../../outside"]
)
def test_no_text_of_the_browser_becomes_a_path(tmp_path: Path, path: str) -> None:
    make_run(tmp_path / "outside", steps=1)
    make_run(tmp_path / "root" / "inside", steps=1)
    assert Library(tmp_path / "root").chosen(path, str(tmp_path / path)) == []


def test_a_link_that_leads_out_is_not_followed(tmp_path: Path) -> None:
    outside = make_run(tmp_path / "outside", steps=1)
    root = tmp_path / "root"
    make_run(root / "inside", steps=1)
    (root / "link").symlink_to(outside, target_is_directory=True)
    assert "outside" not in ids(Library(root))


def test_the_root_may_be_a_run_itself(synthetic_run: Maker) -> None:
    path = synthetic_run("alone", steps=2)
    entries = Library(path).entries()
    assert [entry.name for entry in entries] == ["alone"]


def test_runs_appear_change_and_go(synthetic_run: Maker, tmp_path: Path) -> None:
    library = Library(tmp_path / "later")
    assert library.listing() == []
    make_run(tmp_path / "later" / "one", steps=1)
    before = library.listing()
    assert [row[1] for row in before] == ["one"]
    shutil.rmtree(tmp_path / "later" / "one")
    assert library.listing() == []
    make_run(tmp_path / "later" / "one", steps=1, name="anew")
    assert [row[1] for row in library.listing()] == ["anew"]
    assert library.listing() != before


def test_a_damaged_run_is_an_entry_with_its_error(synthetic_run: Maker, tmp_path: Path) -> None:
    synthetic_run("good", steps=1)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("{ nonsense")
    bad, good = Library(tmp_path).entries()
    assert (bad.name, bad.run) == ("bad", None)
    assert "run.json" in bad.error
    assert good.run is not None
