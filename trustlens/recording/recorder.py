"""`record` and `Recorder`: measure an optimizer's steps, queue the results for the writer thread.

torch calls the recorder's step hooks before and after each optimizer step. They copy what the step
overwrites, then measure what the step did, and queue the measured sums. They never raise. They
synchronize with an accelerator only at the start of a resumed run, and only if the optimizer keeps
its step count on the accelerator.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.optim import Optimizer

from trustlens.recording.description import describe_optimizer, describe_run
from trustlens.recording.hooks.failsafe import Failsafe
from trustlens.recording.hooks.optimizer import Call, StepHooks
from trustlens.recording.measuring.layers import find_layers
from trustlens.recording.measuring.measurement import Measurement, send_to_host
from trustlens.recording.measuring.probe import OptimizerProbe
from trustlens.recording.options import BEING_RECORDED, check_options, checked_optimizers
from trustlens.recording.resume import has_state, own_count, progress_of
from trustlens.recording.step_clock import StepClock
from trustlens.recording.step_counter import (
    Event,
    Gap,
    Position,
    Progress,
    Rollback,
    State,
    StepCounter,
    StepsBefore,
    checked_state,
)
from trustlens.recording.transfer import NoRoomError, Parcel, host_scalar
from trustlens.recording.writing.pipeline import WritePipeline, open_for_writing
from trustlens.recording.writing.records import MetricRecord, StepRecord
from trustlens.recording.writing.sink import Listener
from trustlens.store.address import locate
from trustlens.store.location import Location
from trustlens.store.run_info import LayerInfo, OptimizerInfo, RecordingInfo, storable
from trustlens.store.segments.precision import MANTISSA


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
    """Record what an optimizer does to each layer, from the next step on.

    A layer is one parameter tensor. Training results are bit-identical to training without the
    recorder. Where possible, a layer's weights before a step are computed from its weights and the
    optimizer's state after the step. They are copied before the step only where this computation is
    impossible or could be inexact, and at steps with histograms. The recorder keeps a reference to
    the optimizers until it is closed; it closes itself when the process exits.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer or sequence of them
        The optimizer, or all optimizers of one model. Use them as you would without recording.
    directory : str or path
        Directory to write the run to; created if it does not exist. It must not contain a run,
        unless ``resume`` is True. With an address such as ``s3://bucket/runs/lamb``, the run is
        written to the local disk and uploaded in the background.
    model : torch.nn.Module, optional
        The model, from which the layers get their names. Without a model, a layer has the name that
        was given to the optimizer with the parameter (``model.named_parameters()``), or else a name
        by position: ``group0.param3``.
    name : str, optional
        The run's name; by default the name of the directory.
    config : mapping, optional
        Hyperparameters or other values to store in ``run.json``. Values that JSON cannot represent
        are stored as text.
    every : int
        Record the layers at step 1 and at every ``every``-th step after it.
    histograms_every : int
        Record histograms of the elements of weights, gradients and updates at step 1 and at every
        ``histograms_every``-th step after it; 0 for none. The layers are recorded at these steps
        too.
    resume : bool
        Continue the run in ``directory``, if it contains one. The step after which it continues is
        the one passed to :meth:`Recorder.load_state_dict`. If none was passed, it follows from the
        optimizer's own step count, read at the first step. If the optimizer keeps no count (SGD),
        the run continues after the last recorded step. Rows of later steps are removed, so that
        every (step, layer) appears once; copies of the files with these rows are kept in the run's
        folder ``.replaced``. The run keeps its name and config unless new ones are given.
    fsync : bool
        Call ``fsync`` about once a second, on the writer thread. Written rows survive the end of
        the process in any case; with ``fsync`` they also survive a loss of power.
    precision : int, optional
        Number of mantissa bits, from 1 to 23, to which the floats of the table ``layers`` are
        rounded before they are stored; by default all 23. With 12 bits, the relative error is at
        most 0.0123 % and files are 40 % smaller.
    listeners : sequence of Listener
        Objects that also receive the rows as they are recorded, such as
        ``trustlens.export.TensorBoardListener``.

    Returns
    -------
    Recorder
        The object that records the steps from now on. Use it to log metrics, and close it at the
        end, for example by a ``with`` block.

    Raises
    ------
    UsageError
        If ``optimizer`` is not an optimizer, has no parameters or is already being recorded. If
        ``directory`` contains a run although ``resume`` is False, if another recorder is writing to
        it, or if it is not writable. If a layer has another shape in the run to resume. If an
        option has a wrong type or value.
    RunError
        If the run to resume cannot be read.

    Examples
    --------
    >>> with trustlens.record(optimizer, "runs/lamb", model=model) as recorder:
    ...     for batch in loader:
    ...         loss = train_step(batch)
    ...         recorder.log(loss=loss)

    In a job that may be stopped and restarted, always pass ``resume=True``:

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
    return Recorder(optimizers, locate(directory), **options)


class Recorder:
    """Records the steps of one or more optimizers until it is closed.

    Created by :func:`record`, which explains the parameters. If it is used in a ``with`` statement,
    it is closed at the end of the block. Save its :meth:`state_dict` in each checkpoint if the
    training may be resumed.

    Attributes
    ----------
    directory : Location
        Directory that the run is written to.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        directory: Location,
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
        self._probes = [OptimizerProbe(optimizer) for optimizer in optimizers]
        # Names are only appended: queued records refer to layers by their index in this list.
        self._layer_names: list[str] = []
        # Functions to call once a step number is known, each after the index of the optimizer whose
        # step number is needed, or after None if the step number of the run is needed.
        self._waiting: list[tuple[int | None, Callable[[], None]]] = []
        counts = [own_count(optimizer) or 0 for optimizer in optimizers]
        info = describe_run(
            name or directory.name,
            self._describe_optimizers(),
            self._follow_layers(),
            config or {},
            RecordingInfo(
                every=every,
                histograms_every=histograms_every,
                precision=MANTISSA if precision is None else precision,
                statistics=", ".join(sorted({s for each in self._probes for s in each.statistics})),
                optimizer_steps_before=tuple(counts),
            ),
        )
        keep = [key for key, given in (("name", name), ("config", config)) if given is None]
        run = open_for_writing(
            directory, info, resume=resume, keep=keep, fsync=fsync, precision=precision
        )
        self._steps = StepCounter(counts, run.history)
        self._clock = StepClock(self._steps.last_time)
        self._pipeline = WritePipeline(run, self._layer_names, listeners, self._safely)
        for index in range(len(self._probes)):
            self._attach(index)
        atexit.register(self.close)

    @property
    def step(self) -> int:
        """Number of the last step of the run; 0 before the first.

        Before the first step of a resumed run, the number is an estimate, made from the run's files
        and the optimizer states loaded so far. Then reading this property may synchronize with an
        accelerator.
        """
        return self._position().step

    def log(self, /, **values: float | Tensor) -> None:
        """Record metrics of the last step.

        Parameters
        ----------
        **values
            One number for each metric, passed under the metric's name: a Python or numpy number, or
            a tensor of one element on any device. A tensor is copied to the host without
            synchronizing. Other values are ignored, with one warning per name.
        """
        self._safely(lambda: self._log(values))

    def state_dict(self) -> dict[str, Any]:
        """Return the step numbers to save in a checkpoint.

        Since the recorder has this method and :meth:`load_state_dict`,
        ``torch.distributed.checkpoint`` accepts it as a ``Stateful``.

        Returns
        -------
        dict
            ``step``, an int: the last step of the run. ``own``, a list of int: the last step of
            each optimizer.
        """
        step, own = self._position()
        return {"step": step, "own": own}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue the run after the step at which a checkpoint was saved.

        Call this after loading the checkpoint, in a resumed run or at any time during a run. Rows
        of later steps are removed, so that every (step, layer) appears once; copies of the files
        with these rows are kept in the run's folder ``.replaced``. The call returns at once, and
        the writer thread removes the rows.

        Parameters
        ----------
        state_dict : mapping
            The dict that :meth:`state_dict` returned, or a dict such as ``{"step": 1000}``.

        Raises
        ------
        UsageError
            If ``step`` or an element of ``own`` is not an integer of at least 0.
        """
        own = checked_state(state_dict, len(self._probes))
        self._safely(lambda: self._apply(self._steps.go_to(own)))

    def flush(self) -> None:
        """Wait until readers can see everything recorded so far.

        If the run is on an object store, this includes the upload, for at most 10 s.
        """
        if not self._safely.over and not self._safely.is_fork:
            self._pipeline.flush()

    def close(self) -> None:
        """Remove the hooks, write the remaining rows and seal the run's files.

        If the run is on an object store, also wait for the upload. If the upload makes no progress
        for 60 s, stop waiting; the files not uploaded yet stay on this machine. Closing a second
        time does nothing.
        """
        if self._safely.over:
            return
        self._safely(self._call_all_waiting)
        self._safely.over = True
        atexit.unregister(self.close)
        for probe in self._probes:
            probe.detach()
            BEING_RECORDED.discard(probe.optimizer)
        if not self._safely.is_fork:  # the files belong to the parent process
            self._pipeline.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _attach(self, index: int) -> None:
        probe = self._probes[index]
        hooks = StepHooks(
            probe.optimizer,
            self._safely,
            before=lambda call: self._before(index, call),
            after=lambda: self._after(index),
            skipped=lambda: self._skipped(index),
            captured=lambda: self._safely.warn(
                "trustlens cannot record steps captured in a CUDA graph, since replaying it runs "
                "no Python; to record them, keep optimizer.step() out of the graph"
            ),
        )
        probe.attach(hooks)
        BEING_RECORDED.add(probe.optimizer)
        if not probe.family.name:
            self._safely.warn(
                f"trustlens does not know {type(probe.optimizer).__name__}: it measures each "
                "update from a copy of the weights and gradients, and records null for each "
                "quantity that cannot be measured this way"
            )

    # The step hooks call the next three methods, through the failsafe. They must not block.

    def _before(self, index: int, call: Call) -> Call | None:
        probe = self._probes[index]
        if self._steps.state is not State.COUNTING:
            self._find_step()
        known, step = self._steps.is_known(index), self._steps.next_step(index)
        histograms = _is_due(step, self._histograms_every) if known else self._histograms_every > 0
        measure = histograms or not known or _is_due(step, self._every)
        if measure and probe.has_changed:
            layers = self._follow_layers(self._pipeline.info.layers)
            optimizers = self._describe_optimizers()
            self._pipeline.change_info(
                lambda info: replace(info, layers=layers, optimizers=optimizers)
            )
        return probe.before(call, measure=measure, histograms=histograms)

    def _after(self, index: int) -> None:
        probe = self._probes[index]
        if not self._steps.is_known(index):
            self._apply(self._steps.after_step(index, has_state=has_state(probe.optimizer)))
        step = self._steps.next_step(index)
        histograms = _is_due(step, self._histograms_every)
        due = histograms or _is_due(step, self._every)
        try:
            skipped = probe.skipped()
            measured = [] if skipped == 1.0 else probe.after(histograms=histograms)
            sent = [send_to_host(each) for each in measured] if due else []
        except NoRoomError:
            self._count_step(index, None, 0.0)
        else:
            self._count_step(index, sent, skipped)

    def _skipped(self, index: int) -> None:
        self._find_step()
        self._when_known(index, lambda: self._count_step(index, [], 1.0))

    def _count_step(
        self, index: int, measured: Sequence[Measurement[Parcel]] | None, skipped: float | Parcel
    ) -> None:
        # Steps are counted at their end, so that a step whose closure raises does not count.
        step, first = self._steps.count(index)
        if measured is None:
            self._pipeline.drop()
            return
        record = StepRecord(step, self._clock.now(), first, measured, skipped)
        self._pipeline.put(record, sum(part.nbytes for part in measured))

    # The methods below find out the step numbers, with the `StepCounter`.

    def _position(self) -> Position:
        if self._steps.state is State.UNKNOWN:
            return self._steps.position(self._progress(wait=True))
        return self._steps.position()

    def _find_step(self) -> None:
        """Determine the number of the step that begins, if the optimizers' states show it."""
        # Reading a step count on an accelerator synchronizes: do so in a resumed run only.
        self._apply(self._steps.before_step(self._progress(wait=self._steps.is_resumed)))

    def _progress(self, *, wait: bool) -> dict[int, Progress]:
        return {
            index: progress_of(self._probes[index].optimizer, wait=wait)
            for index in self._steps.unknown
        }

    def _apply(self, events: Sequence[Event]) -> None:
        for event in events:
            match event:
                case Rollback():
                    self._pipeline.put(event)
                case Gap(after, until):
                    self._safely.warn(
                        f"trustlens: '{self.directory}' continues after step {until}, but has rows "
                        f"up to step {after} only: the steps between are missing"
                    )
                case StepsBefore(counts):
                    self._pipeline.change_info(
                        lambda info, counts=counts: info.change_recording(
                            optimizer_steps_before=counts
                        )
                    )
        self._call_waiting()

    def _when_known(self, index: int | None, work: Callable[[], None]) -> None:
        """Call a function at once, or later when the step number that it needs is known.

        The function needs the last step of optimizer ``index``, or of the run if ``index`` is None.
        """
        if self._is_known(index):
            work()
        else:
            self._waiting.append((index, work))

    def _is_known(self, index: int | None) -> bool:
        if index is None:
            return self._steps.state is not State.UNKNOWN
        return self._steps.is_known(index)

    def _call_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for index, work in waiting:
            self._when_known(index, work)

    def _call_all_waiting(self) -> None:
        """Call all functions in ``_waiting`` now, since no step will follow."""
        for _, work in self._waiting:
            work()

    def _describe_optimizers(self) -> tuple[OptimizerInfo, ...]:
        return tuple(
            describe_optimizer(probe.optimizer, probe.family.name, probe.family.variant)
            for probe in self._probes
        )

    def _follow_layers(self, before: Sequence[LayerInfo] = ()) -> tuple[LayerInfo, ...]:
        """Find the layers of the optimizers, and let each probe measure those of its optimizer.

        Return all layers found, followed by the layers of ``before`` that no longer exist.
        """
        layers = find_layers([probe.optimizer for probe in self._probes], self._model)
        present = {layer.info.name for layer in layers}
        old = set(self._layer_names)
        self._layer_names += [at.info.name for at in layers if at.info.name not in old]
        index_of = {name: index for index, name in enumerate(self._layer_names)}
        for index, probe in enumerate(self._probes):
            own = [layer for layer in layers if layer.info.optimizer == index]
            probe.follow([(index_of[layer.info.name], layer) for layer in own])
        gone = [info for info in before if info.name not in present]
        return (*(layer.info for layer in layers), *gone)

    def _log(self, values: Mapping[str, Any]) -> None:
        taken: dict[str, float | Parcel] = {}
        for name, value in values.items():
            try:
                taken[storable(name)] = host_scalar(value)
            except NoRoomError:
                self._pipeline.drop()
            except Exception as error:  # noqa: BLE001 — a bad value must not stop recording
                self._safely.warn(f"trustlens: log got {name}={error}; give one number", about=name)
        self._when_known(None, lambda: self._pipeline.put(MetricRecord(self.step, taken)))

    def _release(self) -> None:
        for probe in self._probes:
            probe.release()


def _is_due(step: int, every: int) -> bool:
    return every > 0 and (step - 1) % every == 0
