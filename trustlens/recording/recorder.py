"""`record`: hooks → statistics → transfer → store.

The hooks do what must be done while the step happens: keep what it overwrites, measure after it,
hand the sums to the writer thread. They never raise and never wait for a device.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.optim import Optimizer

from trustlens.recording.hooks.failsafe import Failsafe
from trustlens.recording.hooks.optimizer import Call
from trustlens.recording.measuring.layers import find_layers
from trustlens.recording.measuring.probe import Watch
from trustlens.recording.options import (
    BEING_RECORDED,
    check_options,
    checked_optimizers,
    describe,
    describe_run,
)
from trustlens.recording.step_clock import StepClock
from trustlens.recording.step_counter import Course, Rewind, checked_state
from trustlens.recording.transfer import NoRoomError, Parcel, WriterThread, host_scalar
from trustlens.recording.writing.sink import Listener, Output
from trustlens.recording.writing.tables import Measured, MetricRecord, Record, StepRecord
from trustlens.store.gaps import DROPPED, dropped
from trustlens.store.layout import LayerInfo, OptimizerInfo, storable
from trustlens.store.location import Place, place
from trustlens.store.remote.staging import SESSION, kept_if_well, prepared
from trustlens.store.remote.uploader import Mirror
from trustlens.store.segments.precision import MANTISSA
from trustlens.store.writer import RunWriter


def record(
    optimizer: Optimizer | Sequence[Optimizer],
    directory: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    every: int = 1,
    histograms_every: int = 0,
    resume: bool = False,
    fsync: bool = False,
    precision: int | None = None,
    listeners: Sequence[Listener] = (),
) -> Recorder:
    """Record what an optimizer does to each layer, from now on.

    The training is bit for bit what it is without. Weights are copied only where what a step
    changed cannot be told from what is there after it. Until it is closed, at the end of the
    process at the latest, a recorder holds on to its optimizers.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer or sequence of them
        The optimizer, or the optimizers of one model. They stay the user's own.
    directory : str or path
        Where the run is written; made if it is not there. It must not hold a run, unless
        ``resume``. It may be an address such as ``s3://bucket/runs/lamb``: then the run is written
        to this machine's disk and uploaded meanwhile.
    model : torch.nn.Module, optional
        Gives the layers their names.
    name : str, optional
        The run's name; that of the directory if not given.
    config : mapping, optional
        Anything JSON can hold, kept in ``run.json``.
    every : int
        Record the layers at the first step and every so many after it.
    histograms_every : int
        Record element histograms of weights, gradients and updates likewise; 0 for never. The
        layers are recorded at these steps too.
    resume : bool
        Go on with the run that the directory holds, if it holds one: from the step that
        :meth:`Recorder.load_state_dict` says; else, as the first step is done, from the one that
        the optimizer's own count of steps tells; else, where it keeps none (SGD), from the last
        recorded one. Rows behind it are taken away, since they will come again; the files that
        held them are kept in the run's folder ``.replaced``. Name and config stay unless given.
    fsync : bool
        Wait, on the writer's thread, until what is written is on the disk: about once a second.
        What was written outlives the process in any case, and with this a loss of power too.
    precision : int, optional
        Bits of their mantissas that the floats of ``layers`` keep, from 1 to 23: all 23 if not
        given. With 12 a value is off by 0.0123 % at most, and the files are 40 % smaller.
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
        holds a run (without ``resume``), is being recorded into or cannot be written; the run to
        be resumed has a layer of another shape; an option is of another kind, or out of range.
    RunError
        The run to be resumed cannot be read.

    Examples
    --------
    >>> with trustlens.record(optimizer, "runs/lamb", model=model) as recorder:
    ...     for batch in loader:
    ...         loss = train_step(batch)
    ...         recorder.log(loss=loss)

    A job that may be stopped and started again passes ``resume=True`` every time:

    >>> recorder = trustlens.record(optimizer, "runs/lamb", model=model, resume=True)
    >>> if checkpoint.exists():
    ...     saved = torch.load(checkpoint)
    ...     model.load_state_dict(saved["model"])
    ...     optimizer.load_state_dict(saved["optimizer"])
    ...     recorder.load_state_dict(saved["recorder"])
    """
    optimizers = checked_optimizers(optimizer)
    options: dict[str, Any] = {
        "model": model,
        "name": name,
        "config": config,
        "every": every,
        "histograms_every": histograms_every,
        "resume": resume,
        "fsync": fsync,
        "precision": precision,
        "listeners": listeners,
    }
    check_options(directory=directory, **options)
    return Recorder(optimizers, place(directory), **options)


class Recorder:
    """Records until it is closed. Made by :func:`record`."""

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        directory: Place,
        *,
        model: nn.Module | None,
        name: str | None,
        config: Mapping[str, Any] | None,
        every: int,
        histograms_every: int,
        resume: bool,
        fsync: bool,
        precision: int | None,
        listeners: Sequence[Listener],
    ) -> None:
        self.directory = directory
        self._model = model
        self._every = every
        self._histograms_every = histograms_every
        self._safely = Failsafe(directory, self._release)
        self._watches = [Watch(optimizer) for optimizer in optimizers]
        # Only ever grows: what waits for the writer thread names its layers by their place here.
        self._names: list[str] = []
        local, lock = prepared(directory, resume=resume)
        with kept_if_well(lock):
            self._course = Course(
                local, self._watches, put=self._put, note=self._note, warn=self._safely.warn
            )
            info = describe_run(
                name or (directory.absolute() if isinstance(directory, Path) else directory).name,
                self._described(),
                self._follow(),
                config or {},
                every=every,
                histograms_every=histograms_every,
                precision=MANTISSA if precision is None else precision,
                statistics=", ".join(
                    sorted({name for each in self._watches for name in each.statistics})
                ),
                **({} if lock is None else {SESSION: lock.session}),
                **self._course.noted,
            )
            stays = [key for key, given in (("name", name), ("config", config)) if given is None]
            resumed = partial(self._course.resume, new=info, stays=stays)
            self._store = RunWriter(
                local,
                info,
                resume=resumed if resume else None,
                fsync=fsync,
                precision=precision,
            )
        self._mirror = None if lock is None else Mirror(local, lock)
        self._clock = StepClock(self._course.last_time)
        self._output = Output(
            self._store, self._names, listeners, self._safely.warn, several=len(optimizers) > 1
        )
        self._thread: WriterThread[Record | Rewind] = WriterThread(self._output.write)
        for watch in self._watches:
            self._attach(watch)
            BEING_RECORDED.add(watch.optimizer)
            if not watch.family.name:
                self._safely.warn(
                    f"trustlens does not know {type(watch.optimizer).__name__}: what it does is "
                    "measured, with a copy of the weights and gradients; what cannot be told is "
                    "recorded as null"
                )
        atexit.register(self.close)

    @property
    def step(self) -> int:
        """The last optimizer step's number, as a resumed run can tell by now; 0 before any."""
        return self._course.step

    def log(self, /, **values: float | Tensor) -> None:
        """Record metrics of the step that was done last.

        Parameters
        ----------
        **values
            One number each: a Python or numpy number, or a tensor of one element on any device,
            which is taken without waiting. What is no number is left out, with one warning.
        """
        self._safely(lambda: self._log(values))

    def state_dict(self) -> dict[str, Any]:
        """Return which step the run is at, to be saved with a checkpoint.

        Returns
        -------
        dict
            ``step``, and ``own``, the count of each optimizer: plain integers. With
            :meth:`load_state_dict` it makes the recorder a ``Stateful`` of
            ``torch.distributed.checkpoint``.
        """
        return {"step": self.step, "own": self._course.own}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's step, in a resumed run or in mid-run; it does not wait.

        Rows behind that step are taken away, since they will come again; the files that held them
        are kept in the run's folder ``.replaced``.

        Parameters
        ----------
        state_dict : mapping
            What :meth:`state_dict` returned, or ``{"step": 1000}``.

        Raises
        ------
        UsageError
            It has no ``step`` that is a whole number of 0 or more.
        """
        own = checked_state(state_dict, len(self._watches))
        self._safely(lambda: self._course.go_to(own))

    def flush(self) -> None:
        """Wait until everything recorded so far is in files that a reader sees.

        Of a run on an object store, as long as ten seconds at the most: it may not answer.
        """
        if not self._safely.over and not self._safely.is_fork:
            self._thread.flush()
            self._look_at_thread()
            if self._mirror is not None:
                self._mirror.flush()

    def close(self) -> None:
        """Take the hooks off, write what is left, seal the run. Closing twice does nothing.

        A run on an object store is uploaded; what it takes in no more, for a minute, stays here.
        """
        if self._safely.over:
            return
        self._safely(self._course.end)
        self._safely.over = True
        atexit.unregister(self.close)
        for watch in self._watches:
            watch.detach()
            BEING_RECORDED.discard(watch.optimizer)
        if self._safely.is_fork:
            return  # a fork's copy: the files are the other process's
        self._thread.close()
        self._look_at_thread()
        count = dropped(self._store.info) + self._thread.dropped
        lost: dict[str, Any] = {DROPPED: count} if count else {}
        if self._safely.failure is not None:
            lost["stopped"] = self._safely.failure
        now = datetime.now(UTC).isoformat()
        self._safely.at_last(self._output.close)
        self._safely.at_last(lambda: self._store.close(self._store.info.closed_at(now, **lost)))
        if self._mirror is not None:
            self._safely.at_last(self._mirror.close)

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
        watch.attach(
            self._safely,
            before=lambda call: self._before(watch, call),
            after=lambda: self._after(watch),
            skipped=lambda: self._course.when_known(watch, lambda: self._stepped(watch, [], 1.0)),
            captured=lambda: self._safely.warn(
                "trustlens does not record steps captured in a CUDA graph, whose replays run no "
                "Python; to record them, leave optimizer.step() out of the graph"
            ),
        )

    def _before(self, watch: Watch, call: Call) -> Call | None:
        known, step = self._course.known(watch), watch.step + 1
        histograms = _due(step, self._histograms_every) if known else self._histograms_every > 0
        measure = histograms or not known or _due(step, self._every)
        if measure and watch.has_changed:
            layers = self._follow(self._store.info.layers)
            described = self._described()
            self._store.change_info(lambda info: replace(info, layers=layers, optimizers=described))
        return watch.before(call, measure=measure, histograms=histograms)

    def _after(self, watch: Watch) -> None:
        self._course.known_after(watch)
        histograms = _due(watch.step + 1, self._histograms_every)
        due = histograms or _due(watch.step + 1, self._every)
        try:
            skipped = watch.skipped()
            measured = [] if skipped == 1.0 else watch.after(histograms=histograms)
        except NoRoomError:
            self._stepped(watch, None, 0.0)
        else:
            self._stepped(watch, measured if due else [], skipped)

    def _stepped(
        self, watch: Watch, measured: Sequence[Measured] | None, skipped: float | Parcel
    ) -> None:
        watch.step += 1  # not before the step: a closure may have raised, and then there was none
        first = watch.step > self.step
        self._course.step = max(self.step, watch.step)
        if measured is None:
            self._drop()
        else:
            step = StepRecord(watch.step, self._clock.now(), first, measured, skipped)
            self._put(step, sum(part.nbytes for part in measured))
        self._look_at_thread()

    def _described(self) -> tuple[OptimizerInfo, ...]:
        return tuple(
            describe(watch.optimizer, watch.family.name, watch.family.variant)
            for watch in self._watches
        )

    def _follow(self, before: Sequence[LayerInfo] = ()) -> tuple[LayerInfo, ...]:
        """Have each optimizer's watch follow its layers; return all, those of before at the end."""
        layers = find_layers([watch.optimizer for watch in self._watches], self._model)
        present = {layer.info.name for layer in layers}
        old = set(self._names)
        self._names += [at.info.name for at in layers if at.info.name not in old]
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
                taken[storable(name)] = host_scalar(value)
            except NoRoomError:
                self._drop()
            except Exception as error:  # noqa: BLE001 — one bad value does not end the recording
                self._safely.warn(f"trustlens: log got {name}={error}; give one number", about=name)
        self._course.when_known(None, lambda: self._put(MetricRecord(self.step, taken)))

    def _note(self, **recorder: Any) -> None:
        self._store.change_info(lambda info: replace(info, recorder={**info.recorder, **recorder}))

    def _put(self, item: Record | Rewind, nbytes: int = 0) -> None:
        if not self._thread.put(item, nbytes, always=isinstance(item, Rewind)):
            self._tell_that_steps_are_lost()

    def _drop(self) -> None:
        self._thread.drop()
        self._tell_that_steps_are_lost()

    def _tell_that_steps_are_lost(self) -> None:
        self._safely.warn(
            f"trustlens: writing to '{self.directory}' is slower than the training; "
            "some steps are not recorded (run.json will say how many)"
        )

    def _look_at_thread(self) -> None:
        if self._thread.failure is not None:
            self._safely.fail(self._thread.failure)

    def _release(self) -> None:
        for watch in self._watches:
            watch.release()


def _due(step: int, every: int) -> bool:
    return every > 0 and (step - 1) % every == 0
