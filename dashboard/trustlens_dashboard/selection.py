"""The selected runs and quantity, which are stored in the query of the page's URL."""

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
    """Ids of run A and run B, and the name of the quantity.

    An id is None if the user has not chosen yet, and ``""`` if the user chose no run.
    """

    a: str | None = None
    b: str | None = None
    quantity: str = DEFAULT_QUANTITY

    @classmethod
    def parse(cls, search: str | None) -> Selection:
        """Parse the query of a URL; use defaults for missing or invalid parts."""
        query = parse_qs((search or "").removeprefix("?"), keep_blank_values=True)
        quantity = query.get("q", [DEFAULT_QUANTITY])[0]
        return cls(
            query.get("a", [None])[0],
            query.get("b", [None])[0],
            quantity if quantity in QUANTITIES else DEFAULT_QUANTITY,
        )

    def search(self) -> str:
        """Return the selection as the query of a URL, starting with "?"."""
        ids = {key: run for key, run in (("a", self.a), ("b", self.b)) if run is not None}
        return "?" + urlencode({**ids, "q": self.quantity})


def resolve(selection: Selection, entries: Sequence[Entry]) -> Selection:
    """Return the selection; a default replaces each run not chosen yet or not readable."""
    existing = {entry.id for entry in entries if entry.run is not None}
    a = selection.a if selection.a in existing else None
    b = selection.b if selection.b in existing or selection.b == "" else None
    if a is None:
        a = _newest(entries, without=b)
    if b is None and a is not None:
        b = _default_partner(entries, a)
        if b is not None and selection.a is None and _family(entries, b) == ADAM:
            a, b = b, a  # show Adam on the left and LAMB on the right
    return replace(selection, a=a, b=b)


def _readable_runs(entries: Sequence[Entry]) -> list[tuple[str, Run]]:
    """Return id and run of each readable run, newest first."""
    runs = [(entry.id, entry.run) for entry in entries if entry.run is not None]
    return sorted(runs, key=lambda pair: pair[1].info.created, reverse=True)


def _newest(entries: Sequence[Entry], without: str | None) -> str | None:
    return next((run_id for run_id, _ in _readable_runs(entries) if run_id != without), None)


def _family(entries: Sequence[Entry], run_id: str) -> str:
    return next(entry.run.family for entry in entries if entry.id == run_id and entry.run)


def _default_partner(entries: Sequence[Entry], chosen: str) -> str | None:
    """Return the id of the run to compare with ``chosen``, or None if there is no other run.

    A run is preferred that makes a pair of one Adam run and one LAMB run. Next come a run of
    another optimizer family, a run with the same learning rate, and the newest run.
    """
    runs = _readable_runs(entries)
    run = next(run for run_id, run in runs if run_id == chosen)
    others = [(run_id, other) for run_id, other in runs if run_id != chosen]

    def distance(pair: tuple[str, Run]) -> tuple[bool, bool, bool]:
        families = {run.family, pair[1].family}
        same_rate = learning_rate(run) == learning_rate(pair[1])
        return families != {ADAM, LAMB}, len(families) == 1, not same_rate

    return min(others, key=distance)[0] if others else None  # ties: the newest run


def learning_rate(run: Run) -> Any:
    """Return the initial learning rate of the first parameter group; None if it is unknown."""
    optimizers = run.info.optimizers
    return optimizers[0].groups[0].get("lr") if optimizers and optimizers[0].groups else None
