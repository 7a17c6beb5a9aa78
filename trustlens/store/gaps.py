"""What a run lacks, and why, in sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

import pyarrow as pa

from trustlens.errors import RunError
from trustlens.schema import TABLES
from trustlens.store.address import Address, locate
from trustlens.store.layout import journal_path
from trustlens.store.location import Location
from trustlens.store.reader import RunFiles
from trustlens.store.row_filter import RowFilter
from trustlens.store.run_info import RecordingInfo, RunInfo
from trustlens.store.segments.contents import read_whole
from trustlens.store.segments.files import journal_numbers, sealed_numbers

_NO_ROOM: Final = "there was no room on the disk for all of their rows"
_PASSED_OVER: Final = "they were done while nothing was recorded, and the run resumed behind them"
_TORN: Final = "the process died before all of their rows of '{}' were on the disk"

_PERIODIC: Final = ("layers", "histograms")
"""The tables that have rows of periodic steps only."""


def torn_bytes(address: Address) -> dict[str, int]:
    """Return by table how many bytes of a dead process's journals are no whole rows."""
    directory = locate(address)
    torn: dict[str, int] = {}
    for table in TABLES:
        for number in journal_numbers(directory, table) - sealed_numbers(directory, table):
            with suppress(FileNotFoundError):  # somebody seals it just now
                lost = read_whole(journal_path(directory, table, number), table)[1]
                torn[table] = torn.get(table, 0) + lost
    return {table: lost for table, lost in torn.items() if lost}


def torn_noted(directory: Address, info: RunInfo, torn: Iterable[str]) -> RunInfo:
    """Return what ``run.json`` of a dead process says, with the steps of which it lacks rows.

    Those are told of the torn tables; and, of a run that was not closed, of those too for whose
    rows there was no room, which else is noted only once there is.
    """
    files, recording = RunFiles(directory), info.recording
    with suppress(RunError):  # a file is damaged: who reads it says so
        # Those in journals only: sealed ones may be of an earlier process, which had other periods.
        done = files.contents("steps")[1]
        never_noted = _PERIODIC if done and info.closed is None else ()
        ends = {name: span[1] for name in TABLES if (span := files.span(name)) is not None}
        for table in dict.fromkeys((*torn, *never_noted)):
            first, last = ends.get(table, 0) + 1, max(ends.values(), default=0)
            if table in _PERIODIC:
                due = _due_from(first, done, table, info)
                first, last = min(due, default=1), max(due, default=0)
            if first <= last:
                recording = recording.with_missing(torn={table: [(first, last)]})
    return replace(info, recording=recording)


def missing(
    address: Address, info: RunInfo, *, last_step: Callable[[], int], dead: bool
) -> list[str]:
    """Return what a run lacks, a sentence each; nothing of a run that lacks nothing.

    Parameters
    ----------
    address : str, path or Location
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
    directory = locate(address)
    torn = torn_bytes(directory) if dead else {}
    said = (torn_noted(directory, info, torn) if dead else info).recording
    found = [f"{_sentence(*steps)}: {why}" for steps, why in _missing_steps(said)]
    if said.dropped:
        found.append(
            f"{said.dropped} steps or logged values are missing: writing was slower than the "
            "training"
        )
    if said.stopped:
        found.append(
            f"what was done after step {last_step()} is missing: recording stopped ({said.stopped})"
        )
    if dead:
        found.append(_end(directory, info, last_step()))
    found += [
        f"the last {lost} bytes of the journal of '{table}' are no whole rows: the process died "
        "while it wrote them"
        for table, lost in torn.items()
    ]
    return found


def _end(directory: Location, info: RunInfo, last: int) -> str:
    why = "the process that recorded ended without closing the run"
    if not directory.is_remote or info.recording.repaired is not None:
        return f"what was done after step {last}, a second of it or so, is missing: {why}"
    return (
        f"what was done after step {last}, ten seconds of it or so, is not here: {why}; what it "
        f"did not upload lies on its machine, from where trustlens repair "
        f"'{directory.whole_address}' uploads it"
    )


def _due_from(first: int, done: Sequence[pa.Table], table: str, info: RunInfo) -> list[int]:
    """Return from which on steps that were done should have rows in a table, but for told ones."""
    told = info.recording.known_missing
    rows = [
        row
        for part in done
        for row in RowFilter(first=first).of(part.select(["step", "skipped"])).to_pylist()
    ]
    return [
        row["step"]
        for row in rows
        if not row["skipped"]
        and _is_due(row["step"], table, info)
        and not any(begin <= row["step"] <= end for begin, end in told)
    ]


def _is_due(step: int, table: str, info: RunInfo) -> bool:
    periods = [info.recording.histograms_every]
    if table == "layers":
        periods.append(info.recording.every)
    return any(period > 0 and (step - 1) % period == 0 for period in periods)


def _missing_steps(recording: RecordingInfo) -> Iterator[tuple[tuple[int, int], str]]:
    """Yield the step ranges that are known to lack rows, each with the reason."""
    by_reason = [(recording.gaps, _NO_ROOM), (recording.passed_over, _PASSED_OVER)]
    by_reason += [(recording.torn.get(table, ()), _TORN.format(table)) for table in TABLES]
    for ranges, why in by_reason:
        for each in ranges:
            yield each, why


def _sentence(first: int, last: int) -> str:
    return f"step {first} is missing" if first == last else f"steps {first} to {last} are missing"
