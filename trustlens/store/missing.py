"""What a run lacks, and why, in sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from trustlens.schema import TABLES
from trustlens.store.layout import RunInfo, journal_path
from trustlens.store.places import Place
from trustlens.store.reader import journal_numbers, read_whole, sealed_numbers

GAPS: Final = "gaps"
"""What ``RunInfo.recorder`` calls the steps for which there was no room: pairs of a first and a
last one. Some of the rows between may be there."""

PASSED_OVER: Final = "passed_over"
"""What it calls the steps behind which a run was resumed though they were not recorded."""


def joined_gaps(gaps: Iterable[Sequence[int]]) -> list[list[int]]:
    """Return gaps in order, those that touch each other as one."""
    joined: list[list[int]] = []
    for first, last in sorted((int(first), int(last)) for first, last in gaps):
        if joined and first <= joined[-1][1] + 1:
            joined[-1][1] = max(last, joined[-1][1])
        else:
            joined.append([first, last])
    return joined


def missing(
    directory: Place, info: RunInfo, *, last_step: Callable[[], int], dead: bool
) -> list[str]:
    """Return what a run lacks, a sentence each; nothing of a run that lacks nothing.

    Parameters
    ----------
    directory : Place
        The run.
    info : RunInfo
        Its ``run.json``.
    last_step : callable
        Tells its last step, if that is to be said: of a long run that is not told at once.
    dead : bool
        Whether it was never closed, and the process that recorded it is gone.

    Raises
    ------
    RunError
        A file is damaged; the message names it.
    """
    said = info.recorder
    found = [
        f"{_steps(gap)}: there was no room on the disk for all of their rows"
        for gap in _pairs(said.get(GAPS))
    ]
    found += [
        f"{_steps(gap)}: they were done while nothing was recorded, and the run resumed behind them"
        for gap in _pairs(said.get(PASSED_OVER))
    ]
    if said.get("dropped"):
        found.append(
            f"{said['dropped']} steps or logged values are missing: writing was slower than the "
            "training"
        )
    if said.get("stopped"):
        found.append(
            f"what was done after step {last_step()} is missing: recording stopped "
            f"({said['stopped']})"
        )
    if dead:
        found.append(
            f"what was done after step {last_step()}, a second of it or so, is missing: the "
            "process that recorded ended without closing the run"
        )
        found += _torn(directory)
    return found


def _torn(directory: Place) -> list[str]:
    found: list[str] = []
    for table in TABLES:
        for number in sorted(journal_numbers(directory, table) - sealed_numbers(directory, table)):
            torn = read_whole(journal_path(directory, table, number), table)[1]
            if torn:
                found.append(
                    f"the last {torn} bytes of the journal of '{table}' are no whole rows: the "
                    "process died while it wrote them"
                )
    return found


def _steps(gap: tuple[int, int]) -> str:
    first, last = gap
    return f"step {first} is missing" if first == last else f"steps {first} to {last} are missing"


def _pairs(given: Any) -> list[tuple[int, int]]:
    """Return the pairs of a list that a ``run.json`` had; what is none is passed over."""
    pairs: list[Any] = given if isinstance(given, list) else []
    return [
        (pair[0], pair[1])
        for pair in pairs
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(n, int) for n in pair)
    ]
