"""On the writer's thread: rows into the run's files, and to who else listens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import pyarrow as pa

from trustlens.recording.step_counter import Rewind
from trustlens.recording.writing.tables import Record, StepRecord, steps_table, tables
from trustlens.store.writer import RunWriter

_log: Final = logging.getLogger("trustlens")


class Listener(Protocol):
    """What else may receive a run's rows while it is recorded, on the writer's thread."""

    def on_layers(self, table: pa.Table) -> None:
        """Receive rows of ``layers``."""
        ...

    def on_metrics(self, table: pa.Table) -> None:
        """Receive rows of ``metrics``."""
        ...

    def on_histograms(self, table: pa.Table) -> None:
        """Receive rows of ``histograms``."""
        ...

    def close(self) -> None:
        """Receive nothing more."""
        ...


class Output:
    """Where what was recorded goes, of one optimizer or of several.

    ``names`` may grow, and has the layers' names at the places by which the records know them.
    """

    def __init__(
        self,
        store: RunWriter,
        names: Sequence[str],
        listeners: Sequence[Listener],
        warn: Callable[[str], None],
        *,
        several: bool,
    ) -> None:
        self._store = store
        self._names = names
        self._listeners = list(listeners)
        self._warn = warn
        self._held: dict[int, StepRecord] | None = {} if several else None

    def write(self, items: Sequence[Record | Rewind]) -> None:
        """Write what the items say, in their order."""
        records: list[Record] = []
        for item in items:
            if isinstance(item, Rewind):
                self._write_rows(records)
                records = []
                self._rewind(item)
            else:
                records.append(item)
        self._write_rows(records)

    def close(self) -> None:
        """Write what was held back; tell the listeners that nothing more comes."""
        self._write_held()
        for listener in list(self._listeners):
            self._tell(listener, "close")

    def _write_held(self) -> None:
        if self._held:
            self._store.append("steps", steps_table(self._held.values()))
            self._held.clear()

    def _write_rows(self, records: Sequence[Record]) -> None:
        made = tables(records, self._names, self._held)
        for name, table in made.items():
            self._store.append(name, table)
        self._store.flush()
        for name in ("layers", "metrics", "histograms"):
            for listener in list(self._listeners):
                if name in made:
                    self._tell(listener, f"on_{name}", made[name])

    def _rewind(self, rewind: Rewind) -> None:
        self._write_held()
        kept = self._store.rewind(rewind.step, rewind.layers(self._store.info.layers))
        if kept is not None:
            _log.log(
                logging.INFO if rewind.step else logging.WARNING,  # all of it: is that meant?
                "trustlens: '%s' goes on after step %d; later rows were taken away, and the files "
                "that held them are kept in '%s'",
                self._store.directory,
                rewind.step,
                kept,
            )

    def _tell(self, listener: Listener, what: str, *table: pa.Table) -> None:
        try:
            getattr(listener, what)(*table)
        except Exception as error:  # noqa: BLE001 — a listener must not end the recording
            self._listeners.remove(listener)
            self._warn(
                f"trustlens: {type(listener).__name__} failed and gets nothing more "
                f"({type(error).__name__}: {error}); the recording goes on"
            )
