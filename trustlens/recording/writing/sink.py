"""Pass recorded rows to the run's files and to listeners, on the writer thread."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import pyarrow as pa

from trustlens.recording.step_counter import Rollback
from trustlens.recording.writing.records import Record, StepRecord
from trustlens.recording.writing.tables import steps_table, tables
from trustlens.store.writer import RunWriter

_log: Final = logging.getLogger("trustlens")


class Listener(Protocol):
    """Receives the rows of a run while it is recorded; pass it as ``record(listeners=[...])``.

    Its methods are called on the writer thread, about once a second. Each ``on_...`` method gets a
    `pyarrow.Table` with the columns of the table that the method is named after. Rows come in the
    order of recording. If the run is rolled back to an earlier step, later steps are recorded
    again: their rows come a second time, without notice. If a listener raises an exception, one
    warning is logged, the listener receives no more rows, and recording continues.

    Examples
    --------
    >>> class PrintMetrics:
    ...     def on_layers(self, table): ...
    ...     def on_histograms(self, table): ...
    ...     def close(self): ...
    ...     def on_metrics(self, table):
    ...         print(table.to_pylist())
    >>> recorder = trustlens.record(optimizer, "runs/lamb", listeners=[PrintMetrics()])
    """

    def on_layers(self, table: pa.Table) -> None:
        """Receive rows of ``layers``: one per (step, layer)."""
        ...

    def on_metrics(self, table: pa.Table) -> None:
        """Receive rows of ``metrics``: one per logged value."""
        ...

    def on_histograms(self, table: pa.Table) -> None:
        """Receive rows of ``histograms``: one per (step, layer, quantity)."""
        ...

    def close(self) -> None:
        """Free resources: the recorder is being closed, and no more rows follow."""
        ...


class RowSink:
    """Converts records to rows, and passes the rows to a run's files and to listeners.

    Parameters
    ----------
    store : RunWriter
        Writes the run's files.
    names : sequence of str
        ``names[i]`` is the name of the layer with index i in the records. Names may be appended.
    listeners : sequence of Listener
        Objects that also receive the rows.
    warn : callable
        Called with a warning if a listener fails.
    several : bool
        Whether the run has more than one optimizer. Then a row of ``steps`` for a skipped step is
        held back until it is known whether another optimizer does this step.
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

    def write(self, items: Sequence[Record | Rollback]) -> None:
        """Write the records and perform the rollbacks, in the order of the items."""
        records: list[Record] = []
        for item in items:
            if isinstance(item, Rollback):
                self._write_rows(records)
                records = []
                self._roll_back(item)
            else:
                records.append(item)
        self._write_rows(records)

    def close(self) -> None:
        """Write the rows of ``steps`` that were held back, and close the listeners."""
        self._write_held()
        for listener in list(self._listeners):
            self._call(listener, "close")

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
                    self._call(listener, f"on_{name}", made[name])

    def _roll_back(self, rollback: Rollback) -> None:
        self._write_held()
        kept = self._store.rollback(rollback.step, rollback.last_steps(self._store.info.layers))
        if kept is not None:
            _log.log(
                logging.INFO if rollback.step else logging.WARNING,  # 0 may be a mistake
                "trustlens: '%s' resumes after step %d; later rows were removed, and the files "
                "that held them are kept in '%s'",
                self._store.directory,
                rollback.step,
                kept,
            )

    def _call(self, listener: Listener, method: str, *table: pa.Table) -> None:
        try:
            getattr(listener, method)(*table)
        except Exception as error:  # noqa: BLE001 — a listener must not stop the recording
            self._listeners.remove(listener)
            self._warn(
                f"trustlens: {type(listener).__name__} failed and receives no more rows "
                f"({type(error).__name__}: {error}); recording continues"
            )
