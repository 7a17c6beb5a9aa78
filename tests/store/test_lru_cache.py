"""The cache is bounded by total size, and is thread-safe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

import trustlens
from tests.support.runs import make_run
from trustlens.store.lru_cache import LruCache


@dataclass(frozen=True)
class Text:
    text: str

    @property
    def nbytes(self) -> int:
        return len(self.text)


def test_the_least_recently_used_item_is_dropped_first() -> None:
    cache, made = LruCache(6), list[str]()

    def get(key: str) -> str:
        return cache.get(key, lambda: made.append(key) or Text(key * 2)).text

    for key in ("a", "b", "c", "a", "d", "a", "b"):
        assert get(key) == key * 2
    assert made == ["a", "b", "c", "d", "b"]
    assert cache.nbytes == 6


def test_an_item_that_is_too_large_is_not_cached() -> None:
    cache = LruCache(4)
    assert [cache.get(0, lambda: Text("12345")).text for _ in range(2)] == ["12345"] * 2
    assert cache.nbytes == 0
    assert cache.get(1, lambda: Text("1")).text == "1"
    assert cache.get(1, lambda: Text("2")).text == "1"


def test_an_error_is_not_cached() -> None:
    cache = LruCache(1)

    def fail() -> Text:
        raise OSError

    with pytest.raises(OSError, match=r"^$"):
        cache.get(0, fail)
    assert cache.get(0, lambda: Text("1")).text == "1"


def test_it_is_thread_safe() -> None:
    cache, wrong = LruCache(3), list[str]()

    def ask(first: int) -> None:
        for i in range(5000):
            key = str((first + i) % 7)
            if cache.get(key, lambda key=key: Text(key)).text != key:
                wrong.append(key)

    threads = [Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cache.nbytes == 3


def test_all_runs_of_the_process_share_one_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read a hundred runs in buckets, and keep all of them: the cache stays within the bound."""
    monkeypatch.setattr("trustlens.store.reader._SETTLED", 0)
    steps = 260
    values = {"grad_norm": np.arange(steps * 20, dtype=np.float64).reshape(steps, 20)}
    make_run(tmp_path / "0", steps=steps, layers=20, values=values)
    one_run = LruCache(1 << 30)
    monkeypatch.setattr("trustlens.store.reader.CACHE", one_run)
    trustlens.Run(tmp_path / "0").downsample("grad_norm", 10)
    assert one_run.nbytes > 0
    bounded = LruCache(10 * one_run.nbytes)
    monkeypatch.setattr("trustlens.store.reader.CACHE", bounded)
    runs: list[trustlens.Run] = []
    for i in range(100):
        if i:
            (tmp_path / str(i)).symlink_to(tmp_path / "0")
        runs.append(trustlens.Run(tmp_path / str(i)))
        assert np.isfinite(runs[-1].downsample("grad_norm", 10).mean).all()
        assert bounded.nbytes <= 10 * one_run.nbytes
    assert bounded.nbytes > 8 * one_run.nbytes  # many runs are cached
