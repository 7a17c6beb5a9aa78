"""`record`: hooks → statistics → transfer → store.

The hooks do what must be done while the step happens: copy the weights before it, measure after
it, hand the sums to the writer thread. They never raise and never wait for a device.
"""

from __future__ import annotations

import atexit
import logging
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import trustlens
from trustlens.errors import UsageError
from trustlens.recording.arguments import (
    BEING_RECORDED,
    check_config,
    checked_optimizers,
    describe,
    plain,
)
from trustlens.recording.layers import find_layers
from trustlens.recording.rows import MetricRecord, Record, StepRecord, tables
from trustlens.recording.transfer import Parcel, WriterThread, host_scalar
from trustlens.recording.watch import STATISTICS, Watch
from trustlens.store.layout import LayerInfo, RunInfo
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


def record(
    optimizer: Optimizer | Sequence[Optimizer],
    directory: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    every: int = 1,
    histograms_every: int = 0,
    listeners: Sequence[Listener] = (),
) -> Recorder:
    """Record what an optimizer does to each layer, from now on.

    The training is bit for bit what it is without. A copy of the weights is kept, to see what a
    step really changed.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer or sequence of them
        The optimizer, or the optimizers of one model. They stay the user's own.
    directory : str or path
        Where the run is written; made if it is not there. It must not hold a run.
    model : torch.nn.Module, optional
        Gives the layers their names.
    name : str, optional
        The run's name; that of the directory if not given.
    config : mapping, optional
        Anything JSON can hold, kept in ``run.json``.
    every : int
        Record the layers at the first step and every so many after it.
    histograms_every : int
        Record element histograms of weights, gradients and updates likewise; 0 for never.
    listeners : sequence of Listener
        Others that receive the rows live, such as ``trustlens.export.TensorBoardListener``.

    Returns
    -------
    Recorder
        To log metrics and to close; a context manager.

    Raises
    ------
    UsageError
        The optimizer is none, has no parameters or is being recorded already; the directory
        holds a run or cannot be written; a number is out of range.

    Examples
    --------
    >>> with trustlens.record(optimizer, "runs/lamb", model=model) as recorder:
    ...     for batch in loader:
    ...         loss = train_step(batch)
    ...         recorder.log(loss=loss)
    """
    optimizers = checked_optimizers(optimizer)
    check_config(config)
    if every < 1:
        raise UsageError(f"record got every={every}; give 1 or more")
    if histograms_every < 0:
        raise UsageError(f"record got histograms_every={histograms_every}; give 0 or more")
    return Recorder(
        optimizers,
        Path(directory),
        model=model,
        name=name,
        config=config,
        every=every,
        histograms_every=histograms_every,
        listeners=listeners,
    )


class Recorder:
    """Records until it is closed. Made by :func:`record`."""

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        directory: Path,
        *,
        model: nn.Module | None,
        name: str | None,
        config: Mapping[str, Any] | None,
        every: int,
        histograms_every: int,
        listeners: Sequence[Listener],
    ) -> None:
        self.directory = directory
        self._model = model
        self._every = every
        self._histograms_every = histograms_every
        self._listeners = list(listeners)
        self._step = 0
        self._closed = False
        self._failure: BaseException | None = None
        self._warned: set[str] = set()
        self._process = os.getpid()
        self._watches = [Watch(optimizer) for optimizer in optimizers]
        # Only ever grows: what waits for the writer thread names its layers by their place here.
        self._names: list[str] = []
        info = RunInfo(
            name=name or directory.absolute().name,
            created=_now().isoformat(),
            optimizers=tuple(describe(optimizer) for optimizer in optimizers),
            layers=self._follow(),
            config=plain(config or {}),
            versions={
                "trustlens": trustlens.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            recorder={
                "every": every,
                "histograms_every": histograms_every,
                "statistics": STATISTICS,
            },
        )
        self._store = RunWriter(directory, info)
        self._thread: WriterThread[Record] = WriterThread(self._write)
        for watch in self._watches:
            self._attach(watch)
            BEING_RECORDED.add(watch.optimizer)
            if not watch.understood:
                self._warn(
                    f"trustlens does not know {type(watch.optimizer).__name__}'s direction: "
                    "its trust ratio and direction norms are recorded as null"
                )
        atexit.register(self.close)

    @property
    def step(self) -> int:
        """The number of the last optimizer step; 0 before the first."""
        return self._step

    def log(self, /, **values: float | Tensor) -> None:
        """Record metrics of the step that was done last.

        Parameters
        ----------
        **values
            One number each: a Python or numpy number, or a tensor of one element on any device,
            which is taken without waiting. What is no number is left out, with one warning.
        """
        self._guard(lambda: self._log(values))

    def flush(self) -> None:
        """Wait until everything recorded so far is in files that a reader sees."""
        if not self._closed and self._process == os.getpid():
            self._thread.flush()
            self._look_at_thread()

    def close(self) -> None:
        """Take the hooks off, write what is left, seal the run. Closing twice does nothing."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        for watch in self._watches:
            watch.detach()
            BEING_RECORDED.discard(watch.optimizer)
        if self._process != os.getpid():
            return  # a fork's copy: the files are the other process's
        self._thread.close()
        self._look_at_thread()
        for listener in list(self._listeners):
            self._tell(listener, "close")
        lost: dict[str, Any] = {"dropped": self._thread.dropped} if self._thread.dropped else {}
        if self._failure is not None:
            lost["stopped"] = _in_words(self._failure)
        try:
            self._store.close(self._store.info.closed_at(_now().isoformat(), **lost))
        except Exception as error:  # noqa: BLE001 — promise 1: the training must not see it
            self._fail(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # In the step: never raise, never wait.

    def _attach(self, watch: Watch) -> None:
        def before(*_: Any) -> None:
            self._guard(lambda: self._before(watch))

        def after(*_: Any) -> None:
            self._guard(lambda: self._after(watch))

        watch.attach(before, after)

    def _guard(self, work: Callable[[], None]) -> None:
        # After a fork there is no writer thread, and its queue's lock may be held for ever.
        if self._failure is not None or self._closed or self._process != os.getpid():
            return
        try:
            with torch.no_grad():
                work()
        except Exception as error:  # noqa: BLE001 — promise 1: the training must not see it
            self._fail(error)

    def _before(self, watch: Watch) -> None:
        if watch.has_changed:
            info = replace(self._store.info, layers=self._follow(self._store.info.layers))
            if info != self._store.info:
                self._store.update_info(info)
        step = watch.step + 1
        watch.before(measure=_due(step, self._every) or _due(step, self._histograms_every))

    def _after(self, watch: Watch) -> None:
        watch.step += 1  # not before it: a closure may have raised, and then there was none
        skipped = watch.skipped()
        measured = (
            []
            if skipped == 1.0
            else watch.after(histograms=_due(watch.step, self._histograms_every))
        )
        first = watch.step > self._step
        self._step = max(self._step, watch.step)
        step = StepRecord(watch.step, _now(), first, measured, skipped)
        self._put(step, sum(part.nbytes for part in measured))
        self._look_at_thread()

    def _follow(self, before: Sequence[LayerInfo] = ()) -> tuple[LayerInfo, ...]:
        """Have each optimizer's watch follow its layers; return all, those of before at the end."""
        layers = find_layers([watch.optimizer for watch in self._watches], self._model)
        present = {layer.info.name for layer in layers}
        self._names += [at.info.name for at in layers if at.info.name not in set(self._names)]
        places = {name: place for place, name in enumerate(self._names)}
        for number, watch in enumerate(self._watches):
            own = [layer for layer in layers if layer.info.optimizer == number]
            watch.follow([(places[layer.info.name], layer) for layer in own])
        gone = [info for info in before if info.name not in present]
        return (*(layer.info for layer in layers), *gone)

    def _log(self, values: Mapping[str, Any]) -> None:
        taken: dict[str, float | Parcel] = {}
        for name, value in values.items():
            try:
                taken[name] = host_scalar(value)
            except Exception as error:  # noqa: BLE001 — one bad value does not end the recording
                self._warn(f"trustlens: log got {name}={error}; give one number", about=name)
        self._put(MetricRecord(self._step, taken))

    def _put(self, item: Record, nbytes: int = 0) -> None:
        if not self._thread.put(item, nbytes):
            self._warn(
                f"trustlens: writing to '{self.directory}' is slower than the training; "
                "some steps are not recorded (run.json will say how many)"
            )

    def _look_at_thread(self) -> None:
        if self._thread.failure is not None:
            self._fail(self._thread.failure)

    def _fail(self, error: BaseException) -> None:
        # The hooks stay until close: torch walks through them at this moment.
        if self._failure is not None:
            return
        self._failure = error
        _log.warning(
            "trustlens stopped recording into '%s'; the training goes on. %s",
            self.directory,
            _in_words(error),
        )

    def _warn(self, message: str, about: str | None = None) -> None:
        key = about or message
        if key not in self._warned:
            self._warned.add(key)
            _log.warning(message)

    # On the writer's thread.

    def _write(self, records: list[Record]) -> None:
        made = tables(records, self._names)
        for name, table in made.items():
            self._store.append(name, table)
        self._store.flush()
        for name in ("layers", "metrics", "histograms"):
            for listener in list(self._listeners):
                if name in made:
                    self._tell(listener, f"on_{name}", made[name])

    def _tell(self, listener: Listener, what: str, *table: pa.Table) -> None:
        try:
            getattr(listener, what)(*table)
        except Exception as error:  # noqa: BLE001 — a listener must not end the recording
            self._listeners.remove(listener)
            self._warn(
                f"trustlens: {type(listener).__name__} failed and gets nothing more "
                f"({_in_words(error)}); the recording goes on"
            )


def _due(step: int, every: int) -> bool:
    return every > 0 and (step - 1) % every == 0


def _now() -> datetime:
    return datetime.now(UTC)


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
