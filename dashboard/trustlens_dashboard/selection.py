"""What is being looked at: two runs and a quantity, as they stand in the page's address."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs, urlencode

from trustlens.analysis.run import Run
from trustlens.families import ADAM, LAMB
from trustlens.schema import QUANTITIES
from trustlens_dashboard.library import Entry

DEFAULT_QUANTITY = "trust_ratio"


@dataclass(frozen=True, slots=True)
class Selection:
    """Ids of the two runs, and the quantity. None is not chosen yet, ``""`` is none on purpose."""

    a: str | None = None
    b: str | None = None
    quantity: str = DEFAULT_QUANTITY

    @classmethod
    def parse(cls, search: str | None) -> Selection:
        """Read the query of an address; what it lacks or has wrong gets its default."""
        query = parse_qs((search or "").removeprefix("?"), keep_blank_values=True)
        quantity = query.get("q", [DEFAULT_QUANTITY])[0]
        return cls(
            query.get("a", [None])[0],
            query.get("b", [None])[0],
            quantity if quantity in QUANTITIES else DEFAULT_QUANTITY,
        )

    def search(self) -> str:
        """Return the query of the address."""
        ids = {key: run for key, run in (("a", self.a), ("b", self.b)) if run is not None}
        return "?" + urlencode({**ids, "q": self.quantity})


def settle(selection: Selection, entries: Sequence[Entry]) -> Selection:
    """Return the selection with runs that are there: defaults for what is not chosen, or gone."""
    there = {entry.id for entry in entries if entry.run is not None}
    a = selection.a if selection.a in there else None
    b = selection.b if selection.b in there or selection.b == "" else None
    if a is None:
        a = _newest(entries, without=b)
    if b is None and a is not None:
        b = _partner(entries, a)
        if b is not None and selection.a is None and _family(entries, b) == ADAM:
            a, b = b, a  # the article's order: Adam left, LAMB right
    return replace(selection, a=a, b=b)


def _opened(entries: Sequence[Entry]) -> list[tuple[str, Run]]:
    """Return the runs that can be read, newest first."""
    runs = [(entry.id, entry.run) for entry in entries if entry.run is not None]
    return sorted(runs, key=lambda pair: pair[1].info.created, reverse=True)


def _newest(entries: Sequence[Entry], without: str | None) -> str | None:
    return next((run_id for run_id, _ in _opened(entries) if run_id != without), None)


def _family(entries: Sequence[Entry], run_id: str) -> str:
    return next(entry.run.family for entry in entries if entry.id == run_id and entry.run)


def _partner(entries: Sequence[Entry], chosen: str) -> str | None:
    """Return whom to compare with: another optimizer at the same rate, else what comes nearest."""
    runs = _opened(entries)
    run = next(run for run_id, run in runs if run_id == chosen)
    others = [(run_id, other) for run_id, other in runs if run_id != chosen]

    def distance(pair: tuple[str, Run]) -> tuple[bool, bool, bool]:
        families = {run.family, pair[1].family}
        same_rate = learning_rate(run) == learning_rate(pair[1])
        return families != {ADAM, LAMB}, len(families) == 1, not same_rate

    return min(others, key=distance)[0] if others else None  # of equals the newest


def learning_rate(run: Run) -> Any:
    """Return the rate that the first group of the first optimizer started with, or None."""
    optimizers = run.info.optimizers
    return optimizers[0].groups[0].get("lr") if optimizers and optimizers[0].groups else None
