"""Test the cache of results: its size limit, versions, and removed runs."""

from __future__ import annotations

from typing import Any

import pytest

from trustlens_dashboard.results import Results

A, B = ("run a",), ("run b",)


class Counter:
    """Get results of a given size from a cache; record each computation."""

    def __init__(self) -> None:
        self.computed: list[str] = []

    def get(self, results: Results, name: str, runs: Any, version: int, size: int = 10) -> str:
        def compute() -> str:
            self.computed.append(f"{name} {version}")
            return self.computed[-1]

        return results.get(name, runs, version, compute, lambda _: size)


def test_a_result_is_computed_once_per_version() -> None:
    results, counter = Results(1000), Counter()
    for version in (1, 1, 2, 2, 1):
        assert counter.get(results, "x", A, version) == f"x {version}"
    assert counter.computed == ["x 1", "x 2", "x 1"]  # only the newest version is cached


def test_the_least_recently_used_result_is_evicted_first() -> None:
    results, counter = Results(30), Counter()
    for name in ("x", "y", "z", "x", "w"):  # x is used again, so w evicts y
        counter.get(results, name, A, 1)
    counter.computed.clear()
    for name in ("x", "z", "w"):
        counter.get(results, name, A, 1)
    assert counter.computed == []
    counter.get(results, "y", A, 1)
    assert counter.computed == ["y 1"]
    assert counter.get(results, "large", A, 1, size=31) == "large 1"
    counter.computed.clear()
    counter.get(results, "w", A, 1)
    assert counter.computed == []  # a result larger than the limit evicts nothing


def test_results_of_removed_runs_are_dropped() -> None:
    results, counter = Results(1000), Counter()
    for runs in (A, B, A + B):
        counter.get(results, "x", runs, 1)
    results.keep_only(set(A))
    assert results._size == 10
    counter.get(results, "x", A, 1)
    assert len(counter.computed) == 3


def test_an_error_is_not_cached() -> None:
    results = Results(1000)

    def fail() -> str:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        results.get("x", A, 1, fail, len)  # type: ignore[arg-type]
    assert Counter().get(results, "x", A, 1) == "x 1"
