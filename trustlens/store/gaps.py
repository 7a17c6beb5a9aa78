"""Finding the steps that are missing from a run, and describing them in sentences for the user."""

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
_PASSED_OVER: Final = "they ran while nothing was recorded, before the run was resumed"
_TORN: Final = "the process died before all of their rows of '{}' were written"

_PERIODIC: Final = ("layers", "histograms")
"""The tables that have rows only for some steps: see ``every`` in `RecordingInfo`."""


def torn_bytes(address: Address) -> dict[str, int]:
    """Return the sizes of the incomplete batches that a dead process left in a run's journals.

    Returns
    -------
    dict of str to int
        For each table, the number of bytes after the last whole batch of a journal, summed over the
        table's journals. Tables without such bytes are left out.
    """
    directory = locate(address)
    torn: dict[str, int] = {}
    for table in TABLES:
        for number in journal_numbers(directory, table) - sealed_numbers(directory, table):
            with suppress(FileNotFoundError):  # the journal was sealed in the meantime
                lost = read_whole(journal_path(directory, table, number), table)[1]
                torn[table] = torn.get(table, 0) + lost
    return {table: lost for table, lost in torn.items() if lost}


def with_missing_steps(directory: Address, info: RunInfo, torn: Iterable[str]) -> RunInfo:
    """Add the steps that a dead process did not write completely to the contents of ``run.json``.

    The rows of such a step were in an incomplete batch. If the run was not closed, steps that
    should have rows in the tables `_PERIODIC`, but have none, are added too: a process that died
    while the disk was full could not list these steps in ``run.json``.

    Parameters
    ----------
    directory : str, path or Location
        Where the run is.
    info : RunInfo
        The contents of the run's ``run.json``.
    torn : iterable of str
        The tables that have a journal with an incomplete batch.

    Returns
    -------
    RunInfo
        The contents with these steps added; nothing is written.
    """
    files, recording = RunFiles(directory), info.recording
    with suppress(RunError):  # a file is damaged: whoever reads it gets this error
        # Only steps from journals are examined: sealed steps may be from an earlier process, which
        # may have had other recording periods.
        steps = files.contents("steps")[1]
        never_noted = _PERIODIC if steps and info.closed is None else ()
        ends = {name: span[1] for name in TABLES if (span := files.span(name)) is not None}
        for table in dict.fromkeys((*torn, *never_noted)):
            first, last = ends.get(table, 0) + 1, max(ends.values(), default=0)
            if table in _PERIODIC:
                due = _due_from(first, steps, table, info)
                first, last = min(due, default=1), max(due, default=0)
            if first <= last:
                recording = recording.with_missing(torn={table: [(first, last)]})
    return replace(info, recording=recording)


def missing(
    address: Address, info: RunInfo, *, last_step: Callable[[], int], dead: bool
) -> list[str]:
    """Return sentences that say what is missing from a run and why; empty if nothing is missing.

    Parameters
    ----------
    address : str, path or Location
        Where the run is.
    info : RunInfo
        The contents of the run's ``run.json``.
    last_step : callable
        A function that returns the run's last step. It is called only if a sentence names that
        step, since finding it is slow for a long run.
    dead : bool
        Whether the run was never closed and the process that recorded it has ended.

    Raises
    ------
    RunError
        If a file is damaged; the message names it.
    """
    directory = locate(address)
    torn = torn_bytes(directory) if dead else {}
    recording = (with_missing_steps(directory, info, torn) if dead else info).recording
    sentences = [f"{_sentence(*steps)}: {why}" for steps, why in _missing_steps(recording)]
    if recording.dropped:
        sentences.append(
            f"{recording.dropped} steps or logged values are missing: writing was slower than the "
            "training"
        )
    if recording.stopped:
        sentences.append(
            f"the steps after step {last_step()} are missing: recording stopped "
            f"({recording.stopped})"
        )
    if dead:
        sentences.append(_end(directory, info, last_step()))
    sentences += [
        f"the last {lost} bytes of the journal of '{table}' are an incomplete batch: the process "
        "died while it wrote them"
        for table, lost in torn.items()
    ]
    return sentences


def _end(directory: Location, info: RunInfo, last: int) -> str:
    why = "the recording process ended without closing the run"
    if not directory.is_remote or info.recording.repaired is not None:
        return f"up to about one second of training after step {last} is missing: {why}"
    return (
        f"up to about ten seconds of training after step {last} is not uploaded: {why}; to upload "
        "the rest, run on the machine that recorded it: trustlens repair "
        f"'{directory.whole_address}'"
    )


def _due_from(first: int, steps: Sequence[pa.Table], table: str, info: RunInfo) -> list[int]:
    """Return the steps from ``first`` on that should have rows in a table.

    Skipped steps, and steps already known to be missing, are left out.
    """
    known = info.recording.known_missing
    rows = [
        row
        for part in steps
        for row in RowFilter(first=first).of(part.select(["step", "skipped"])).to_pylist()
    ]
    return [
        row["step"]
        for row in rows
        if not row["skipped"]
        and _is_due(row["step"], table, info)
        and not any(begin <= row["step"] <= end for begin, end in known)
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
