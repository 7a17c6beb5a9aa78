"""What is kept is bounded by its size, and several threads may use it."""

from __future__ import annotations

from threading import Thread

import pytest

from trustlens.store.lru_cache import Memory


def test_the_least_used_goes_first() -> None:
    memory: Memory[str, str] = Memory(6, len)
    made: list[str] = []

    def get(key: str) -> str:
        return memory.get(key, lambda: made.append(key) or key * 2)

    for key in ("a", "b", "c", "a", "d", "a", "b"):
        assert get(key) == key * 2
    assert made == ["a", "b", "c", "d", "b"]


def test_what_is_too_large_is_not_kept() -> None:
    memory: Memory[int, bytes] = Memory(4, len)
    assert [memory.get(0, lambda: b"12345") for _ in range(2)] == [b"12345"] * 2
    assert memory.get(1, lambda: b"1") == b"1"
    assert memory.get(1, lambda: b"2") == b"1"


def test_what_could_not_be_made_is_made_again() -> None:
    memory: Memory[int, int] = Memory(1, int)

    def fail() -> int:
        raise OSError

    with pytest.raises(OSError, match=r"^$"):
        memory.get(0, fail)
    assert memory.get(0, lambda: 1) == 1


def test_threads_do_not_disturb_each_other() -> None:
    memory: Memory[int, int] = Memory(3, lambda _: 1)
    wrong: list[int] = []

    def ask(first: int) -> None:
        for i in range(5000):
            key = (first + i) % 7
            if memory.get(key, lambda key=key: key) != key:
                wrong.append(key)

    threads = [Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
