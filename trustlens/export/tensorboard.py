"""Write a run for TensorBoard, while it is recorded or from its files.

========================  =============================================================
tag                       content
========================  =============================================================
``loss``, …               a logged metric, as a scalar
``trust_ratio/conv1.w``   a quantity of one layer, as a scalar; one section per quantity
``layers/trust_ratio``    distribution of a quantity over the layers, as a histogram
``elements/update/conv1`` elements of one layer's update, as a histogram
========================  =============================================================

Histograms use the element buckets of :mod:`trustlens.element_bins` (four per doubling, for both
signs), written as triples of left edge, right edge and exact count in float64. Histograms omit
values that are not finite. The scalars ``layers_not_finite/…`` and ``elements_not_finite/…`` count
these values. In all other scalars, values that are not finite are written as NaN or infinity, which
TensorBoard marks. TensorBoard draws 51 steps of a histogram unless it is started with
``--samples_per_plugin histograms=N``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm.auto import tqdm

from trustlens.analysis.run import Run
from trustlens.element_bins import by_value, element_counts, element_edges
from trustlens.errors import MissingDependencyError, UsageError
from trustlens.schema import QUANTITIES, RECORDED, Quantity
from trustlens.store.reader import RunFiles
from trustlens.store.row_filter import RowFilter

try:
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.compat.proto.summary_pb2 import (
        DATA_CLASS_TENSOR,  # pyright: ignore[reportAttributeAccessIssue]
        Summary,  # pyright: ignore[reportAttributeAccessIssue]
    )
    from tensorboard.plugins.histogram.metadata import create_summary_metadata
    from tensorboard.summary.writer.event_file_writer import EventFileWriter
    from tensorboard.util.tensor_util import make_tensor_proto
except ModuleNotFoundError as error:
    raise MissingDependencyError(
        "writing for TensorBoard", error.name or "tensorboard", "tensorboard"
    ) from None

BLOCK_ROWS: Final = 100_000
"""Approximate number of rows of ``layers`` that an export reads at once."""

EVENT_FILES: Final = "*tfevents*"
"""Pattern of file names that TensorBoard reads as event files."""

_EDGES: Final = element_edges()

# Without the RMS quantities: they need layer sizes, which are not in the rows of `layers`.
_QUANTITIES: Final = tuple(q for q in QUANTITIES.values() if set(q.needs) <= set(RECORDED))


def to_tensorboard(run: Run, logdir: str | os.PathLike[str], *, progress: bool = False) -> None:
    """Write a recorded run as a TensorBoard event file.

    Wall times are those of the recording. If the export fails or is interrupted, the event file is
    removed.

    Parameters
    ----------
    run : Run
        The run. If it is still being recorded, the steps written so far are exported.
    logdir : str or path
        A folder for this run only; created if missing.
    progress : bool
        Whether to show a progress bar, if stderr is a terminal.

    Raises
    ------
    UsageError
        If the folder already holds TensorBoard events, is not writable, or is not on this
        machine.
    """
    times = {int(step): t.timestamp() for step, t in run.steps()[["step", "time"]].to_numpy()}
    begin = datetime.fromisoformat(run.info.created).timestamp()  # for metrics logged before step 1
    listener = TensorBoardListener(logdir, time_of=lambda step: times.get(step, begin))
    try:
        with tqdm(total=len(times), unit="step", disable=None if progress else True) as bar:
            files = RunFiles(run.path)
            for rows, count in _blocks(run):
                for name in ("layers", "metrics", "histograms"):
                    getattr(listener, f"on_{name}")(files.read(name, rows=rows))
                bar.update(count)
    except BaseException:
        listener.discard()
        raise
    listener.close()


def _blocks(run: Run) -> Iterable[tuple[RowFilter, int]]:
    """Split the run into ranges of steps; yield each range's row filter and number of steps."""
    steps = run.steps()["step"].to_numpy()
    size = max(1, BLOCK_ROWS // max(1, len(run.layer_names)))
    # Unbounded at both ends, to include metrics logged before the first and after the last step.
    ends = [None, *steps[::size][1:].tolist(), None]
    for block, (first, end) in enumerate(pairwise(ends)):
        rows = RowFilter(first, None if end is None else end - 1)
        yield rows, len(steps[block * size : (block + 1) * size])


class TensorBoardListener:
    """Writes a run as TensorBoard events while it is recorded.

    Pass the listener to the recorder: ``record(..., listeners=[listener])``. In each step, the
    listener writes one scalar per layer and quantity. This takes some milliseconds on the
    recorder's writer thread. Pass ``every`` to ``record`` to write fewer steps.

    Parameters
    ----------
    logdir : str or path
        A folder for this run only; created if missing.
    time_of : callable, optional
        Returns the wall time of a step, in seconds since 1970; default: the time of writing.

    Raises
    ------
    UsageError
        If the folder already holds TensorBoard events, is not writable, or is not on this
        machine.

    Examples
    --------
    >>> listener = trustlens.export.TensorBoardListener("tb/lamb")
    >>> trustlens.record(optimizer, "runs/lamb", model=model, listeners=[listener])
    """

    def __init__(
        self, logdir: str | os.PathLike[str], *, time_of: Callable[[int], float] | None = None
    ) -> None:
        if "://" in os.fspath(logdir):
            raise UsageError(
                f"'{logdir}' is not on this machine; name a folder for TensorBoard's events"
            )
        self._folder = Path(logdir)
        self._time_of = time_of or (lambda _step: time.time())
        self._described: set[str] = set()
        self._open: Any = None
        _prepare_folder(self._folder)

    @property
    def _writer(self) -> Any:
        # Opened when the first row is written: a recording without a step leaves no file.
        if self._open is None:
            self._open = EventFileWriter(str(self._folder))
        return self._open

    def on_layers(self, table: pa.Table) -> None:
        """Write rows of ``layers`` as scalars and as distributions over the layers.

        Parameters
        ----------
        table : pyarrow.Table
            Rows with the schema of ``layers``.
        """
        table = table.sort_by("step")
        names = _texts(table["layer"])
        columns = {name: _floats(table[name]) for name in RECORDED}
        valid_of = {name: table[name].is_valid().to_numpy() for name in RECORDED}
        for rows, step in _steps(table):
            values: list[Any] = []
            for q in _QUANTITIES:
                needs = q.needs or (q.name,)
                valid = np.logical_and.reduce([valid_of[need][rows] for need in needs])
                if valid.any():
                    numbers = _values_of(q, {need: columns[need][rows] for need in needs})[valid]
                    values += self._layer_values(q.name, names[rows][valid], numbers)
            self._add(step, values)
        self._writer.flush()

    def on_metrics(self, table: pa.Table) -> None:
        """Write rows of ``metrics`` as scalars."""
        table = table.sort_by("step")
        names, numbers = _texts(table["name"]), _floats(table["value"])
        for rows, step in _steps(table):
            self._add(step, map(_scalar, names[rows], numbers[rows]))
        self._writer.flush()

    def on_histograms(self, table: pa.Table) -> None:
        """Write rows of the table ``histograms`` as TensorBoard histograms of layers' elements."""
        table = table.sort_by("step")
        names, elements = _texts(table["layer"]), _texts(table["quantity"])
        counts = table["counts"].to_pylist()
        for rows, step in _steps(table):
            values: list[Any] = []
            for row in range(rows.start, rows.stop):
                tag = f"{elements[row]}/{names[row]}"
                values += self._distribution("elements", tag, dict(counts[row] or ()))
            self._add(step, values)
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the file."""
        if self._open is not None:
            self._open.close()

    def discard(self) -> None:
        """Close and remove the file."""
        self.close()
        for path in self._folder.glob(EVENT_FILES):
            path.unlink()

    def _layer_values(
        self, name: str, layers: NDArray[Any], numbers: NDArray[np.float64]
    ) -> list[Any]:
        scalars = map(_scalar, [f"{name}/{layer}" for layer in layers], numbers)
        return [*scalars, *self._distribution("layers", name, element_counts(numbers))]

    def _distribution(self, what: str, name: str, counts: Mapping[int, int]) -> list[Any]:
        ordered, nonfinite = by_value(counts)
        places = np.flatnonzero(ordered)
        values: list[Any] = []
        if len(places):
            triples = np.stack([_EDGES[places], _EDGES[places + 1], ordered[places]], axis=1)
            tag = f"{what}/{name}"
            tensor = make_tensor_proto(triples.astype(np.float64))
            values.append(Summary.Value(tag=tag, tensor=tensor, metadata=self._metadata_once(tag)))
        if nonfinite:
            values.append(_scalar(f"{what}_not_finite/{name}", nonfinite))
        return values

    def _metadata_once(self, tag: str) -> Any:
        if tag in self._described:  # TensorBoard uses only the first metadata of a tag
            return None
        self._described.add(tag)
        metadata = create_summary_metadata(display_name="", description="")
        metadata.data_class = DATA_CLASS_TENSOR
        return metadata

    def _add(self, step: int, values: Iterable[Any]) -> None:
        # One event per step: one per value would take several times as much space.
        event = Event(wall_time=self._time_of(step), step=step, summary=Summary(value=values))
        self._writer.add_event(event)


def _prepare_folder(folder: Path) -> None:
    """Create the folder; raise UsageError if it holds events or is not writable."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"'{folder}' is a file; name a folder for TensorBoard's events")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"'{folder}' cannot be created ({error.strerror}); name another"
        ) from error
    if any(folder.glob(EVENT_FILES)):
        raise UsageError(
            f"'{folder}' already holds TensorBoard events, and TensorBoard would draw both runs "
            "as one; name another folder, or remove this one"
        )
    if not os.access(folder, os.W_OK):
        raise UsageError(f"'{folder}' is not writable; check its permissions, or name another")


def _scalar(tag: str, value: float) -> Any:
    return Summary.Value(tag=tag, simple_value=value)


def _steps(table: pa.Table) -> Iterable[tuple[slice, int]]:
    """Yield the slice of rows and the number of each step; the table must be sorted by step."""
    steps = table["step"].to_numpy()
    starts = np.flatnonzero(np.diff(steps, prepend=steps[:1] - 1)).tolist()
    for start, stop in pairwise([*starts, len(steps)]):
        yield slice(start, stop), int(steps[start])


def _texts(column: pa.ChunkedArray) -> NDArray[Any]:
    return column.cast(pa.string()).to_numpy()


def _floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False)


def _values_of(q: Quantity, columns: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    if q.compute is None:
        return columns[q.name]
    with np.errstate(all="ignore"):  # 0/0 gives NaN, which means unknown
        return q.compute(columns)
