"""Which runs and which quantity an address selects."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trustlens.schema import QUANTITIES
from trustlens_dashboard.library import Library
from trustlens_dashboard.selection import Selection, settle

Maker = Callable[..., Path]
LAMB = "trustlens.optim.lamb.Lamb"


def ids(library: Library) -> dict[str, str]:
    return {entry.name: entry.id for entry in library.snapshot().entries}


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
    settled = settle(Selection(), library.snapshot().entries)
    named = {run_id: name for name, run_id in ids(library).items()}
    assert (named[settled.a or ""], named[settled.b or ""]) == ("adam-0.01", "lamb-0.01")


def test_what_was_chosen_stays(synthetic_run: Maker, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        synthetic_run(name, steps=2)
    library = Library(tmp_path)
    known = ids(library)
    assert settle(Selection(known["c"], ""), library.snapshot().entries) == Selection(
        known["c"], ""
    )
    chosen = Selection(known["b"], known["a"], "grad_norm")
    assert settle(chosen, library.snapshot().entries) == chosen


def test_a_run_that_is_gone_gives_way(synthetic_run: Maker, tmp_path: Path) -> None:
    synthetic_run("a", steps=2)
    gone = synthetic_run("gone", steps=2)
    library = Library(tmp_path)
    known = ids(library)
    shutil.rmtree(gone)
    settled = settle(Selection(known["gone"], known["a"]), library.snapshot().entries)
    assert known["gone"] not in (settled.a, settled.b)
    assert known["a"] in (settled.a, settled.b)


def test_no_runs_no_selection(tmp_path: Path) -> None:
    assert settle(Selection(), Library(tmp_path / "missing").snapshot().entries) == Selection(
        None, None
    )
