"""What a run lacks, and why, in sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from trustlens.errors import RunError
from trustlens.schema import TABLES
from trustlens.store.layout import RunInfo, journal_path
from trustlens.store.location import Place
from trustlens.store.reader import RunFiles, journal_numbers, read_whole, sealed_numbers
from trustlens.store.row_filter import Rows

GAPS: Final = "gaps"
"""What ``RunInfo.recorder`` calls the steps for which there was no room."""

PASSED_OVER: Final = "passed_over"
"""What it calls the steps behind which a run was resumed though they were not recorded."""

DROPPED: Final = "dropped"
"""What it calls the number of steps and logged values for which writing was too slow."""

REPAIRED: Final = "repaired"
"""What it calls the time at which a run was repaired that nobody went on with."""

_TORN: Final = {table: f"torn_{table}" for table in TABLES}
"""What it calls the steps whose rows of a table a dead process left torn, or had no room for."""

NOTES: Final[Mapping[str, str]] = {
    GAPS: "there was no room on the disk for all of their rows",
    PASSED_OVER: "they were done while nothing was recorded, and the run resumed behind them",
    **{
        key: f"the process died before all of their rows of '{table}' were on the disk"
        for table, key in _TORN.items()
    },
}
"""Why steps are missing. Each is a list of pairs of a first and a last one in
``RunInfo.recorder``; some of the rows between may be there."""

_PERIODS: Final[Mapping[str, Mapping[str, int]]] = {
    "layers": {"every": 1, "histograms_every": 0},
    "histograms": {"histograms_every": 0},
}
"""By table, what ``RunInfo.recorder`` calls the periods of the steps that have rows in it."""


def noted(info: RunInfo, key: str, gaps: Iterable[Sequence[int]]) -> RunInfo:
    """Return what ``run.json`` says, with more steps under one of `NOTES`."""
    joined: list[list[int]] = []
    for first, last in sorted([*_pairs(info.recorder.get(key)), *((f, n) for f, n in gaps)]):
        if joined and first <= joined[-1][1] + 1:
            joined[-1][1] = max(last, joined[-1][1])
        else:
            joined.append([first, last])
    return replace(info, recorder={**info.recorder, key: joined}) if joined else info


def noted_up_to(info: RunInfo, last: int) -> RunInfo:
    """Return what ``run.json`` says, without its notes of the steps behind ``last``."""
    kept = {
        key: [[first, min(end, last)] for first, end in _pairs(info.recorder[key]) if first <= last]
        for key in NOTES
        if key in info.recorder
    }
    return replace(info, recorder={**info.recorder, **kept})


def dropped(info: RunInfo) -> int:
    """Return for how many steps and logged values writing was too slow, as ``run.json`` says."""
    count = info.recorder.get(DROPPED)
    return count if isinstance(count, int) else 0


def torn_bytes(directory: Place) -> dict[str, int]:
    """Return by table how many bytes of a dead process's journals are no whole rows."""
    torn: dict[str, int] = {}
    for table in TABLES:
        for number in journal_numbers(directory, table) - sealed_numbers(directory, table):
            with suppress(FileNotFoundError):  # somebody seals it just now
                lost = read_whole(journal_path(directory, table, number), table)[1]
                torn[table] = torn.get(table, 0) + lost
    return {table: lost for table, lost in torn.items() if lost}


def torn_noted(directory: Place, info: RunInfo, torn: Iterable[str]) -> RunInfo:
    """Return what ``run.json`` of a dead process says, with the steps of which it lacks rows.

    Those are told of the torn tables; and, of a run that was not closed, of those too for whose
    rows there was no room, which else is noted only once there is.
    """
    files, found = RunFiles(directory), info
    with suppress(RunError):  # a file is damaged: who reads it says so
        # Those in journals only: sealed ones may be of an earlier process, which had other periods.
        done = files.contents("steps")[1]
        never_noted = _PERIODS if done and info.closed is None else ()
        ends = {name: span[1] for name in TABLES if (span := files.span(name)) is not None}
        for table in dict.fromkeys((*torn, *never_noted)):
            lost = [ends.get(table, 0) + 1, max(ends.values(), default=0)]
            if table in _PERIODS:
                due = _due_from(lost[0], done, table, info)
                lost = [min(due, default=1), max(due, default=0)]
            if lost[0] <= lost[1]:
                found = noted(found, _TORN[table], [lost])
    return found


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
    torn = torn_bytes(directory) if dead else {}
    said = (torn_noted(directory, info, torn) if dead else info).recorder
    found = [f"{_steps(gap)}: {why}" for key, why in NOTES.items() for gap in _pairs(said.get(key))]
    if count := dropped(info):
        found.append(
            f"{count} steps or logged values are missing: writing was slower than the training"
        )
    if said.get("stopped"):
        found.append(
            f"what was done after step {last_step()} is missing: recording stopped "
            f"({said['stopped']})"
        )
    if dead:
        found.append(_end(directory, info, last_step()))
    found += [
        f"the last {lost} bytes of the journal of '{table}' are no whole rows: the process died "
        "while it wrote them"
        for table, lost in torn.items()
    ]
    return found


def _end(directory: Place, info: RunInfo, last: int) -> str:
    why = "the process that recorded ended without closing the run"
    if isinstance(directory, Path) or REPAIRED in info.recorder:
        return f"what was done after step {last}, a second of it or so, is missing: {why}"
    return (
        f"what was done after step {last}, ten seconds of it or so, is not here: {why}; what it "
        f"did not upload lies on its machine, from where trustlens repair "
        f"'{directory.whole_address}' uploads it"
    )


def _due_from(first: int, done: Sequence[pa.Table], table: str, info: RunInfo) -> list[int]:
    """Return from which on steps that were done should have rows in a table, but for told ones."""
    told = [gap for key in NOTES for gap in _pairs(info.recorder.get(key))]
    rows = [
        row
        for part in done
        for row in Rows(first=first).of(part.select(["step", "skipped"])).to_pylist()
    ]
    return [
        row["step"]
        for row in rows
        if not row["skipped"]
        and _is_due(row["step"], table, info)
        and not any(begin <= row["step"] <= end for begin, end in told)
    ]


def _is_due(step: int, table: str, info: RunInfo) -> bool:
    said = [info.recorder.get(key, default) for key, default in _PERIODS[table].items()]
    return any(isinstance(n, int) and n > 0 and (step - 1) % n == 0 for n in said)


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
