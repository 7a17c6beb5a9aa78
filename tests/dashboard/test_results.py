"""The cache of results: one bound, the newest version of each, nothing of runs that are gone."""

from __future__ import annotations

from typing import Any

import pytest

from trustlens_dashboard.results import Results

A, B = ("run a",), ("run b",)


class Counter:
    """Computes a result of a size, and counts how often."""

    def __init__(self) -> None:
        self.computed: list[str] = []

    def get(self, results: Results, what: str, runs: Any, version: int, size: int = 10) -> str:
        def compute() -> str:
            self.computed.append(f"{what} {version}")
            return self.computed[-1]

        return results.get(what, runs, version, compute, lambda _: size)


def test_a_result_is_computed_once_a_version() -> None:
    results, counter = Results(1000), Counter()
    for version in (1, 1, 2, 2, 1):
        assert counter.get(results, "x", A, version) == f"x {version}"
    assert counter.computed == ["x 1", "x 2", "x 1"]  # only the newest is kept


def test_all_results_have_one_bound_and_the_least_used_goes_first() -> None:
    results, counter = Results(30), Counter()
    for what in ("x", "y", "z", "x", "w"):  # x is used again, y goes for w
        counter.get(results, what, A, 1)
    counter.computed.clear()
    for what in ("x", "z", "w"):
        counter.get(results, what, A, 1)
    assert counter.computed == []
    counter.get(results, "y", A, 1)
    assert counter.computed == ["y 1"]
    assert counter.get(results, "large", A, 1, size=31) == "large 1"
    counter.computed.clear()
    counter.get(results, "w", A, 1)
    assert counter.computed == []  # what is too large to be kept drops nothing


def test_results_of_runs_that_are_gone_are_dropped() -> None:
    results, counter = Results(1000), Counter()
    for runs in (A, B, A + B):
        counter.get(results, "x", runs, 1)
    results.keep_only(set(A))
    assert results._size == 10
    counter.get(results, "x", A, 1)
    assert len(counter.computed) == 3


def test_an_error_is_not_kept() -> None:
    results = Results(1000)

    def fail() -> str:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        results.get("x", A, 1, fail, len)  # type: ignore[arg-type]
    assert Counter().get(results, "x", A, 1) == "x 1"
