"""The runs in a folder, under ids that say nothing of the disk.

A browser names a run by such an id only. It is looked up among the runs that were found below the
root, so that no text from a browser ever becomes a path.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trustlens.analysis.discovery import find_runs
from trustlens.analysis.run import Run
from trustlens.errors import TrustlensError
from trustlens.store.layout import RUN_FILE


@dataclass(frozen=True, slots=True)
class Entry:
    """A run that was found: opened, or with the sentence that says why it cannot be."""

    id: str
    path: Path
    name: str
    run: Run | None
    error: str = ""


class Library:
    """The runs below a folder. Every call looks at the disk anew.

    Parameters
    ----------
    root : Path
        A folder that holds runs, or a run itself. It may appear later.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._open: dict[Path, tuple[int, Entry]] = {}

    def entries(self) -> list[Entry]:
        """Return the runs there are now, by path; those outside the root (by a link) are not."""
        try:
            paths = find_runs(self.root)
        except TrustlensError:
            return []
        inside = [path for path in paths if path.resolve().is_relative_to(self.root)]
        return [entry for path in inside if (entry := self._entry(path)) is not None]

    def chosen(self, *run_ids: str | None) -> list[Run]:
        """Return the runs of those ids that can be read, in that order, each once."""
        return list(self.chosen_by_id(*run_ids).values())

    def chosen_by_id(self, *run_ids: str | None) -> dict[str, Run]:
        """Return the same by their ids."""
        there = {entry.id: entry.run for entry in self.entries()}
        return {run_id: run for run_id in run_ids if run_id and (run := there.get(run_id))}

    def listing(self) -> list[list[Any]]:
        """Return what changes when a run appears, goes, or is recorded anew under the same name."""
        return [
            [entry.id, entry.name, entry.error, _changed(entry.path)] for entry in self.entries()
        ]

    def _entry(self, path: Path) -> Entry | None:
        changed = _changed(path)
        known = self._open.get(path)
        if known is not None and known[0] == changed:
            return known[1]
        run_id = _identify(path.relative_to(self.root))
        try:
            run = Run(path)
            entry = Entry(run_id, path, run.name, run)
        except TrustlensError as error:
            if not changed:
                return None  # it went while we looked
            entry = Entry(run_id, path, path.name, None, str(error))
        self._open[path] = (changed, entry)
        return entry


def _identify(relative: Path) -> str:
    return hashlib.blake2b(relative.as_posix().encode(), digest_size=6).hexdigest()


def _changed(path: Path) -> int:
    try:
        return (path / RUN_FILE).stat().st_mtime_ns
    except OSError:
        return 0
