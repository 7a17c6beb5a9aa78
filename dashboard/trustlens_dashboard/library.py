"""The runs below a folder, identified by hashes of their paths.

A browser identifies a run by its hash only. The hash is looked up among the runs found below the
root, so that text from a browser is never used as a path.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Final

from trustlens.analysis.discovery import find_runs
from trustlens.analysis.run import Run, Status
from trustlens.errors import TrustlensError
from trustlens.store.address import locate
from trustlens.store.layout import RUN_FILE
from trustlens.store.reader import fingerprint
from trustlens_dashboard.results import Results

RESULT_BYTES: Final = 64 * 2**20
"""Maximum total size in bytes of the results that a library caches."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A run directory: the opened run, or the error if it cannot be opened.

    Attributes
    ----------
    id : str
        Hash of the path relative to the root, 12 hexadecimal digits.
    path : Path
    name : str
        The run's name; the folder's name if the run cannot be opened.
    run : Run or None
        None if the run cannot be opened.
    changed : int
        Modification time of ``run.json`` in ns; 0 if the file is missing.
    error : str
        Why the run cannot be opened; empty if it can.
    """

    id: str
    path: Path
    name: str
    run: Run | None
    changed: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """The status of a run, and a ``version`` that changes whenever the run's files change."""

    version: str
    status: Status


class Snapshot:
    """The runs below a folder at one moment.

    Attributes
    ----------
    root : Path
    entries : tuple of Entry
        The runs, sorted by path. Links to runs outside the root are ignored.
    results : Results
        The cache of results computed from the runs, shared by all snapshots of a library.
    """

    def __init__(self, root: Path, entries: Sequence[Entry], results: Results) -> None:
        self.root = root
        self.entries = tuple(entries)
        self.results = results
        self._states: dict[Run, State] = {}

    def chosen(self, *run_ids: str | None) -> list[Run]:
        """Return the readable runs with these ids, in this order, without duplicates."""
        return list(self.chosen_by_id(*run_ids).values())

    def chosen_by_id(self, *run_ids: str | None) -> dict[str, Run]:
        """Return the readable runs with these ids as a dict from id to run, in this order."""
        runs = {entry.id: entry.run for entry in self.entries}
        return {run_id: run for run_id in run_ids if run_id and (run := runs.get(run_id))}

    def listing(self) -> list[list[Any]]:
        """Return a JSON value that changes when a run is added, removed, renamed or replaced."""
        return [[entry.id, entry.name, entry.error, entry.changed] for entry in self.entries]

    def state(self, run: Run) -> State:
        """Return the state of a run, read from disk at the first call and cached for later ones.

        Raises
        ------
        TrustlensError, OSError
            If the run is being removed or replaced, or the files are not readable.
        """
        known = self._states.get(run)
        if known is None:
            known = self._states[run] = State(fingerprint(run.path), run.status)
        return known

    def version(self, entry: Entry) -> list[str]:
        """Return a JSON value that changes with the run: its version and status, or its error."""
        if entry.run is None:
            return [entry.error]
        try:
            state = self.state(entry.run)
        except (TrustlensError, OSError) as error:
            return [str(error)]
        return [state.version, state.status]


class Library:
    """Finds the runs below a folder and returns them as snapshots. A dashboard has one library.

    Parameters
    ----------
    root : Path
        A folder that contains runs, or one run. It may be created later.
    max_age : float
        Seconds during which :meth:`snapshot` returns the previous snapshot without searching the
        folder again.
    """

    def __init__(self, root: Path, max_age: float = 0.0) -> None:
        self._root = root.resolve()
        self._max_age = max_age
        self._lock = Lock()  # held during a search, so that concurrent callers share the result
        self._last: Snapshot | None = None
        self._found_at = 0.0
        self._entries: dict[Path, Entry] = {}
        self._results = Results(RESULT_BYTES)

    def snapshot(self) -> Snapshot:
        """Return a snapshot of the runs that is at most ``max_age`` seconds old."""
        with self._lock:
            last = self._last
            if last is None or time.monotonic() - self._found_at >= self._max_age:
                last = self._last = self._search()
                self._found_at = time.monotonic()
            return last

    def _search(self) -> Snapshot:
        try:
            paths = find_runs(self._root)
        except TrustlensError:
            paths = []
        inside = [path for path in paths if path.resolve().is_relative_to(self._root)]
        entries = [entry for path in inside if (entry := self._entry(path)) is not None]
        self._entries = {entry.path: entry for entry in entries}
        self._results.keep_only({entry.run for entry in entries if entry.run is not None})
        return Snapshot(self._root, entries, self._results)

    def _entry(self, path: Path) -> Entry | None:
        changed = _changed(path)
        known = self._entries.get(path)
        if known is not None and known.changed == changed:
            return known
        run_id = _identify(path.relative_to(self._root))
        try:
            run = Run(path)
        except TrustlensError as error:
            if not changed:
                return None  # it was removed during the search
            return Entry(run_id, path, path.name, None, changed, str(error))
        return Entry(run_id, path, run.name, run, changed)


def _identify(relative: Path) -> str:
    return hashlib.blake2b(relative.as_posix().encode(), digest_size=6).hexdigest()


def _changed(path: Path) -> int:
    entry = locate(path / RUN_FILE).entry()
    return 0 if entry is None else entry.changed
