"""Pass records from the training thread to a run's files: writer thread, store and upload."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from trustlens.recording.description import describe_resumed
from trustlens.recording.hooks.failsafe import Failsafe
from trustlens.recording.resume import read_history
from trustlens.recording.step_counter import History, Rollback
from trustlens.recording.writing.records import Record
from trustlens.recording.writing.sink import Listener, RowSink
from trustlens.recording.writing.writer_thread import WriterThread
from trustlens.store.location import Location
from trustlens.store.remote.staging import prepare_folder, released_on_error
from trustlens.store.remote.uploader import Uploader
from trustlens.store.run_info import RunInfo
from trustlens.store.writer import RunWriter


@dataclass(frozen=True, slots=True)
class OpenedRun:
    """A run that is open for writing.

    Attributes
    ----------
    store : RunWriter
        Writes the run's files on this machine.
    uploader : Uploader, optional
        Uploads these files if the run is on an object store; None if it is not.
    history : History, optional
        The steps that the files of a resumed run contain; None for a new run.
    """

    store: RunWriter
    uploader: Uploader | None
    history: History | None


def open_for_writing(
    directory: Location,
    info: RunInfo,
    *,
    resume: bool,
    keep: Sequence[str],
    fsync: bool,
    precision: int | None,
) -> OpenedRun:
    """Create a run in a directory, or resume the existing one.

    Parameters
    ----------
    directory : Location
        Where the run is written.
    info : RunInfo
        Contents of ``run.json`` for a new run.
    resume : bool
        Whether to resume an existing run.
    keep : sequence of str
        Fields of ``run.json`` that a resumed run keeps instead of taking them from ``info``.
    fsync : bool
        Whether to call ``fsync`` each time that rows are written.
    precision : int, optional
        Number of mantissa bits to which the floats of the table ``layers`` are rounded.

    Returns
    -------
    OpenedRun
        The run. The caller must close it.

    Raises
    ------
    UsageError
        If the directory contains a run although ``resume`` is False; if another recorder is writing
        to it; if a layer has another shape in the run to resume than in ``info``; or if the
        directory cannot be written to.
    RunError
        If the run to resume cannot be read.
    """
    history: History | None = None
    local, lease = prepare_folder(directory, resume=resume)

    def resumed(old: RunInfo) -> RunInfo:
        nonlocal history
        described = describe_resumed(local, old, info, keep=keep)
        history = read_history(local, old, len(info.optimizers))
        return described.change_recording(optimizer_steps_before=history.steps_before)

    with released_on_error(lease):
        if lease is not None:
            info = info.change_recording(session=lease.session)
        store = RunWriter(
            local, info, resume=resumed if resume else None, fsync=fsync, precision=precision
        )
    return OpenedRun(store, None if lease is None else Uploader(local, lease), history)


class WritePipeline:
    """Passes records from the training thread to the run's files, without blocking it.

    Parameters
    ----------
    run : OpenedRun
        The run, open for writing.
    names : sequence of str
        ``names[i]`` is the name of the layer with index i in the records. Names may be appended.
    listeners : sequence of Listener
        Objects that also receive the rows.
    failsafe : Failsafe
        Handles errors of writing, and warns if writing is too slow.
    """

    def __init__(
        self,
        run: OpenedRun,
        names: Sequence[str],
        listeners: Sequence[Listener],
        failsafe: Failsafe,
    ) -> None:
        self._store = run.store
        self._uploader = run.uploader
        self._failsafe = failsafe
        several = len(run.store.info.optimizers) > 1
        self._sink = RowSink(run.store, names, listeners, failsafe.warn, several=several)
        self._thread: WriterThread[Record | Rollback] = WriterThread(self._sink.write)

    @property
    def info(self) -> RunInfo:
        """The contents of ``run.json``."""
        return self._store.info

    def change_info(self, change: Callable[[RunInfo], RunInfo]) -> None:
        """Replace the contents of ``run.json`` by what ``change`` returns for them."""
        self._store.change_info(change)

    def put(self, item: Record | Rollback, nbytes: int = 0) -> None:
        """Queue a record of ``nbytes`` bytes, or drop it if too much is queued.

        A rollback is never dropped.
        """
        if not self._thread.put(item, nbytes, always=isinstance(item, Rollback)):
            self._warn_of_drops()
        self._check_thread()

    def drop(self) -> None:
        """Count a record that was dropped because the ring buffer of its device was full."""
        self._thread.drop()
        self._warn_of_drops()
        self._check_thread()

    def flush(self) -> None:
        """Wait until all items put so far are in files, then at most 10 s for their upload."""
        self._thread.flush()
        self._check_thread()
        if self._uploader is not None:
            self._uploader.flush()

    def close(self) -> None:
        """Write the queued items and seal the run. The failsafe handles errors."""
        self._thread.close()
        self._check_thread()
        info = self._store.info
        closed = info.closed_at(
            datetime.now(UTC).isoformat(),
            dropped=info.recording.dropped + self._thread.dropped,
            stopped=self._failsafe.failure or info.recording.stopped,
        )
        self._failsafe.call_while_closing(self._sink.close)
        self._failsafe.call_while_closing(lambda: self._store.close(closed))
        if self._uploader is not None:
            self._failsafe.call_while_closing(self._uploader.close)

    def _warn_of_drops(self) -> None:
        self._failsafe.warn(
            f"trustlens: writing to '{self._failsafe.directory}' is slower than the training; "
            "some steps are not recorded (run.json will contain their number as `dropped`)"
        )

    def _check_thread(self) -> None:
        if self._thread.failure is not None:
            self._failsafe.fail(self._thread.failure)
