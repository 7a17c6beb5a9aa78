"""Test the selection: parsing the query of the URL, and defaults."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trustlens.schema import QUANTITIES
from trustlens_dashboard.library import Library
from trustlens_dashboard.selection import Selection, resolve

Maker = Callable[..., Path]
LAMB = "trustlens.optim.lamb.Lamb"


def ids(library: Library) -> dict[str, str]:
    return {entry.name: entry.id for entry in library.snapshot().entries}


@given(
    st.one_of(st.none(), st.text(max_size=20)),
    st.one_of(st.none(), st.text(max_size=20)),
    st.sampled_from(list(QUANTITIES)),
)
def test_a_selection_round_trips_through_the_query(
    a: str | None, b: str | None, quantity: str
) -> None:
    selection = Selection(a, b, quantity)
    assert Selection.parse(selection.search()) == selection


@pytest.mark.parametrize("search", [None, "", "?", "?q=nonsense", "?a=&q=%00", "?&&==&q"])
def test_an_invalid_query_gives_the_default(search: str | None) -> None:
    selection = Selection.parse(search)
    assert selection.quantity == "trust_ratio"
    assert not selection.a


def test_defaults_are_adam_and_lamb_at_the_same_rate(synthetic_run: Maker, tmp_path: Path) -> None:
    synthetic_run("adam-0.01", steps=3)
    synthetic_run("lamb-0.1", steps=3, optimizer=LAMB, lr=0.1)
    synthetic_run("lamb-0.01", steps=3, optimizer=LAMB)
    synthetic_run("sgd-0.01", steps=3, optimizer="torch.optim.sgd.SGD")
    library = Library(tmp_path)
    resolved = resolve(Selection(), library.snapshot().entries)
    named = {run_id: name for name, run_id in ids(library).items()}
    assert (named[resolved.a or ""], named[resolved.b or ""]) == ("adam-0.01", "lamb-0.01")


def test_chosen_runs_are_kept(synthetic_run: Maker, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        synthetic_run(name, steps=2)
    library = Library(tmp_path)
    known = ids(library)
    assert resolve(Selection(known["c"], ""), library.snapshot().entries) == Selection(
        known["c"], ""
    )
    chosen = Selection(known["b"], known["a"], "grad_norm")
    assert resolve(chosen, library.snapshot().entries) == chosen


def test_a_removed_run_is_replaced(synthetic_run: Maker, tmp_path: Path) -> None:
    synthetic_run("a", steps=2)
    gone = synthetic_run("gone", steps=2)
    library = Library(tmp_path)
    known = ids(library)
    shutil.rmtree(gone)
    resolved = resolve(Selection(known["gone"], known["a"]), library.snapshot().entries)
    assert known["gone"] not in (resolved.a, resolved.b)
    assert known["a"] in (resolved.a, resolved.b)


def test_without_runs_nothing_is_selected(tmp_path: Path) -> None:
    assert resolve(Selection(), Library(tmp_path / "missing").snapshot().entries) == Selection(
        None, None
    )
