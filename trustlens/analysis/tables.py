"""Read the tables of a run as DataFrames."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Final, cast, overload

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from trustlens.analysis.derived import compute, compute_downsampled, stored_columns
from trustlens.analysis.names import quantity, require_list
from trustlens.analysis.pivot import pivot, steps_by_layers
from trustlens.analysis.sampling import Sample, bucket_sample, exact_sample, nearest_steps
from trustlens.analysis.selection import StepSelection, row_filter
from trustlens.errors import RunError, UsageError
from trustlens.schema import RECORDED, TABLES
from trustlens.store.address import Address, locate
from trustlens.store.arrow import codes, numbers
from trustlens.store.downsampled import Downsampled, check_view, read_downsampled
from trustlens.store.layout import RUN_FILE
from trustlens.store.reader import RunFiles
from trustlens.store.row_filter import RowFilter
from trustlens.store.run_info import RunInfo, read_info

LONG: Final = 8
"""A run is long if its table ``layers`` has more than this number of sealed files. A sealed file
is complete and has about 131,072 rows. `RunTables.sample` reads a long run in buckets of steps,
from the overview files of the run, which contain such buckets."""

_MAX_NAMES: Final = 20  # layer names listed in an error message


class RunTables:
    """The tables of one recorded run: the base class of :class:`~trustlens.analysis.run.Run`.

    Reading never changes a file. Each call reads what is on disk at that moment, so later calls
    on the same object return the newer steps of a run that is still being recorded.

    Attributes
    ----------
    path : Location
        The directory of the run.
    info : RunInfo
        The content of ``run.json``. All methods that read layers read the file again if the file
        changed.
    """

    def __init__(self, path: Address) -> None:
        self.path = locate(path)
        self._info_entry = (self.path / RUN_FILE).entry()
        self.info: RunInfo = read_info(self.path)
        self._names_of: tuple[RunInfo | None, list[str]] = (None, [])
        self._files = RunFiles(self.path)

    @property
    def name(self) -> str:
        """The name passed to ``record``; by default the name of the directory."""
        return self.info.name

    @property
    def layer_names(self) -> list[str]:
        """Names of the layers, in model order."""
        info, known = self.info, self._names_of
        if known[0] is not info:  # `info` was read again, perhaps by another thread
            known = self._names_of = (info, [layer.name for layer in info.layers])
        return known[1]

    @property
    def last_step(self) -> int:
        """The number of the last optimizer step; 0 if there was none."""
        span = self.span("steps")
        return 0 if span is None else span[1]

    def span(self, table: str = "layers") -> tuple[int, int] | None:
        """Return the first and the last step in a table; None if the table is empty.

        Parameters
        ----------
        table : str
            ``"layers"``, ``"steps"``, ``"metrics"`` or ``"histograms"``.

        Raises
        ------
        UsageError
            If ``table`` is not a table.
        """
        if table not in TABLES:
            raise UsageError(f"'{table}' is not a table; choose one of: {', '.join(TABLES)}")
        return self._files.span(table)

    def layers(
        self,
        columns: Sequence[str] | None = None,
        layers: Sequence[str] | None = None,
        steps: StepSelection = None,
    ) -> pd.DataFrame:
        """Return one row per (step, layer), sorted by step, then in model order.

        Parameters
        ----------
        columns : sequence of str, optional
            Names of recorded or derived quantities; default: every recorded one.
        layers : sequence of str, optional
            Names of layers; default: all.
        steps : slice or sequence of int, optional
            Step numbers, or a half-open slice of step numbers; default: all.

        Returns
        -------
        DataFrame
            ``step`` (int64), ``layer`` (ordered category), then the requested columns. Derived
            quantities are float64. Recorded quantities are float32, except for counts: these are
            int64, or float64 if some are missing. Quantities that the optimizer does not have are
            NaN.

        Raises
        ------
        UsageError
            If a name is not a quantity, or not a layer of this run.
        """
        step, indices, values = self._read(RECORDED if columns is None else columns, layers, steps)
        order = np.lexsort((indices, step))
        layer = pd.Categorical.from_codes(indices[order], self.layer_names, ordered=True)
        frame = pd.DataFrame({"step": step[order], "layer": layer})
        for name, value in values.items():
            frame[name] = value[order]
        return frame

    def matrix(self, name: str, steps: StepSelection = None) -> pd.DataFrame:
        """Return one quantity as steps × layers.

        Parameters
        ----------
        name : str
            A recorded or derived quantity.
        steps : slice or sequence of int, optional
            Step numbers, or a half-open slice of step numbers; default: all.

        Returns
        -------
        DataFrame
            float64; index ``step``, ascending; one column per layer, in model order. NaN if there
            is no value.

        Raises
        ------
        UsageError
            If ``name`` is not a quantity.
        """
        step, indices, values = self._read([name], None, steps)
        return steps_by_layers(step, indices, values[name], self.layer_names)

    @overload
    def downsample(
        self,
        names: str,
        points: int = 400,
        *,
        layers: Sequence[str] | None = None,
        steps: tuple[int, int] | None = None,
        extremes: bool = True,
    ) -> Downsampled: ...

    @overload
    def downsample(
        self,
        names: list[str] | tuple[str, ...],
        points: int = 400,
        *,
        layers: Sequence[str] | None = None,
        steps: tuple[int, int] | None = None,
        extremes: bool = True,
    ) -> dict[str, Downsampled]: ...

    def downsample(
        self,
        names: str | list[str] | tuple[str, ...],
        points: int = 400,
        *,
        layers: Sequence[str] | None = None,
        steps: tuple[int, int] | None = None,
        extremes: bool = True,
    ) -> Downsampled | dict[str, Downsampled]:
        """Return quantities in buckets of steps.

        The amount of data that is read is bounded, however long the run is.

        Parameters
        ----------
        names : str, or list or tuple of str
            One or several recorded or derived quantities. Derived quantities are computed from the
            means of each bucket.
        points : int
            Maximum number of buckets. The result has at least half as many buckets, unless they
            would be smaller than the smallest stored buckets, of 64 to 256 recorded steps each.
        layers : sequence of str, optional
            Names of layers; default: all.
        steps : (int, int), optional
            The first and the last step; default: all.
        extremes : bool
            If True, the result has the smallest and the largest value of each bucket, except for a
            quantity that is derived from two others. If False, and for such a quantity, both are
            None. Both are stored as float32, so counts above 2^24 are rounded.

        Returns
        -------
        Downsampled, or dict of str to Downsampled
            If ``names`` is a list or tuple, a dict from the name of each quantity to its
            Downsampled. All quantities then have the same buckets. The arrays have shape (buckets,
            layers). The layers are in the requested order, without duplicates.

        Raises
        ------
        UsageError
            If a name is not a quantity, or not a layer of this run; or ``points`` or ``steps`` is
            invalid.
        """
        if isinstance(names, str):
            found = self.downsample([names], points, layers=layers, steps=steps, extremes=extremes)
            return found[names]
        chosen = [quantity(name) for name in names]
        check_view(points, steps)
        indices = self._chosen_layers(layers)
        span = self.span() or (1, 1) if steps is None else steps
        stored = read_downsampled(
            self._files, stored_columns(chosen), list(indices), span, points, extremes=extremes
        )
        sizes = self._sizes(np.array(list(indices.values()), np.int64))
        return {each.name: compute_downsampled(each, stored, sizes) for each in chosen}

    def sample(
        self,
        names: Sequence[str],
        points: int,
        *,
        layers: Sequence[str] | None = None,
        steps: tuple[int, int] | None = None,
        thin: bool = True,
        extremes: bool = True,
    ) -> dict[str, Sample]:
        """Return quantities at single steps if the run is short, in buckets of steps if it is long.

        A run is long if its table ``layers`` has more than :data:`LONG` sealed files.

        Parameters
        ----------
        names : sequence of str
            Recorded or derived quantities.
        points : int
            Maximum number of steps or buckets.
        layers : sequence of str, optional
            Names of layers; default: all.
        steps : (int, int), optional
            The first and the last step; default: all.
        thin : bool
            If True, at most ``points`` steps of a short run are read: the recorded steps nearest to
            evenly spaced steps, including the first and the last. If False, every step is read.
        extremes : bool
            Whether to return the smallest and the largest value of each bucket. If False, the mean
            of a bucket replaces both.

        Returns
        -------
        dict of str to Sample
            A dict from the name of each quantity to its sample. All samples have the same steps.
            The arrays have shape (steps, layers). The layers are in the requested order, without
            duplicates. Buckets without rows are omitted.

        Raises
        ------
        UsageError
            If a name is not a quantity, or not a layer of this run; or ``points`` or ``steps`` is
            invalid.
        """
        names = list(dict.fromkeys(require_list("names", names)))
        if len(self._files.sealed("layers")) > LONG:
            read = self.downsample(names, points, layers=layers, steps=steps, extremes=extremes)
            kept = np.logical_or.reduce([each.rows.any(axis=1) for each in read.values()])
            return {name: bucket_sample(each, kept) for name, each in read.items()}
        selection = None if steps is None else slice(steps[0], steps[1] + 1)
        if thin:
            recorded = np.unique(self._files.read("layers", ["step"])["step"].to_numpy())
            span = steps or (int(recorded[0]), int(recorded[-1])) if len(recorded) else (0, 0)
            selection = nearest_steps(recorded, *span, points)
        return self._sample_exactly(names, layers, selection)

    def _sample_exactly(
        self, names: list[str], layers: Sequence[str] | None, steps: StepSelection
    ) -> dict[str, Sample]:
        read = list(dict.fromkeys([*names, "nonfinite"]))
        step, indices, values = self._read(read, layers, steps)
        wanted = np.array(list(self._chosen_layers(layers).values()), np.int64)
        columns = [np.ones(len(step)), *(values[name] for name in read)]
        recorded, (rows, *arrays) = pivot(step, indices, columns, len(self.layer_names))
        has_row = (rows == 1)[:, wanted]
        selected = {name: array[:, wanted] for name, array in zip(read, arrays, strict=True)}
        return {
            name: exact_sample(recorded, selected[name], has_row, selected["nonfinite"])
            for name in names
        }

    def metrics(self) -> pd.DataFrame:
        """Return the logged metrics: ``step``, ``name``, ``value`` (float64); sorted by step."""
        table = self._files.read("metrics")
        frame = cast("pd.DataFrame", table.to_pandas())
        frame["name"] = frame["name"].astype(object)
        return frame.sort_values("step", kind="stable", ignore_index=True)

    def steps(self) -> pd.DataFrame:
        """Return one row per step: ``step``, ``time`` (UTC), ``skipped``; sorted by step."""
        frame = cast("pd.DataFrame", self._files.read("steps").to_pandas())
        return frame.sort_values("step", ignore_index=True)

    def histograms(self, layer: str | None = None, element: str | None = None) -> pd.DataFrame:
        """Return the element histograms: ``step``, ``layer``, ``quantity``, ``counts``.

        ``counts`` is a dict from bucket (see ``trustlens.element_bins``) to the number of elements
        in this bucket. Empty buckets are omitted. Rows are sorted by step, layer, quantity.

        Parameters
        ----------
        layer : str, optional
            Only this layer.
        element : str, optional
            Only histograms of these elements: ``"weight"``, ``"gradient"`` or ``"update"``.

        Raises
        ------
        UsageError
            If ``layer`` is not a layer of this run.
        """
        texts = self._layer_filter(None if layer is None else [layer])
        if element is not None:
            texts["quantity"] = [element]
        table = self._files.read("histograms", rows=RowFilter(texts=texts))
        frame = pd.DataFrame({"step": table["step"].to_numpy()})
        indices = self._layer_indices(table["layer"])
        frame["layer"] = pd.Categorical.from_codes(indices, self.layer_names, ordered=True)
        frame["quantity"] = table["quantity"].cast(pa.string()).to_pandas().astype(object)
        frame["counts"] = [dict(pairs) for pairs in table["counts"].to_pylist()]
        return frame.sort_values(["step", "layer", "quantity"], ignore_index=True)

    def _read(
        self, columns: Sequence[str], layers: Sequence[str] | None, steps: StepSelection
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[str, NDArray[Any]]]:
        """Return unsorted rows of the table ``layers``.

        The result has the step of each row, the index of its layer in ``layer_names``, and a dict
        from the name of each quantity in ``columns`` to the values of all rows.
        """
        chosen = [quantity(name) for name in require_list("columns", columns)]
        needs = stored_columns(chosen)
        rows = replace(row_filter(steps), texts=self._layer_filter(layers))
        table = self._files.read("layers", ["step", "layer", *needs], rows)
        indices = self._layer_indices(table["layer"])
        stored = {name: table[name].to_numpy() for name in needs}
        sizes = self._sizes(indices)
        values = {each.name: compute(each, stored, sizes) for each in chosen}
        return numbers(table["step"]), indices, values

    def _refresh(self) -> None:
        """Read ``run.json`` again if it changed.

        The file changes when a layer is added, and when the run is closed or resumed.
        """
        now = (self.path / RUN_FILE).entry()
        if now is None or now != self._info_entry:
            self.info = read_info(self.path)
            self._info_entry = now

    def _layer_indices(self, layers: pa.ChunkedArray) -> NDArray[np.int64]:
        """Return each row's layer as an index into ``layer_names``; ``layers`` has the names."""
        row, names = codes(layers)
        if not set(names).issubset(self.layer_names):
            self._refresh()  # layers were added since the last read
        indices = {name: index for index, name in enumerate(self.layer_names)}
        found = np.array([indices.get(name, -1) for name in names], np.int64)[row]
        unknown = {names[code] for code in np.unique(row[found < 0])}
        if unknown:
            raise RunError(
                f"'{self.path}' has rows of a layer '{min(unknown)}' that its {RUN_FILE} does not "
                f"name; restore the {RUN_FILE} that belongs to it"
            )
        return found

    def _sizes(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the number of elements of the layers with these indices."""
        return np.array([layer.size for layer in self.info.layers], np.float64)[indices]

    def _layer_filter(self, layers: Sequence[str] | None) -> dict[str, Collection[str]]:
        """Return the value of ``RowFilter.texts`` that selects the rows of these layers.

        If ``layers`` is None, return an empty dict, which selects all rows.

        Raises
        ------
        UsageError
            If a name is not that of a layer in the current ``run.json``.
        """
        self._refresh()
        if layers is None:
            return {}
        known = self.layer_names
        unknown = set(require_list("layers", layers)).difference(known)
        if unknown:
            more = f", … ({len(known)} in total)" if len(known) > _MAX_NAMES else ""
            raise UsageError(
                f"'{min(unknown)}' is not a layer of run '{self.name}'; "
                f"its layers are: {', '.join(known[:_MAX_NAMES])}{more}"
            )
        return {"layer": frozenset(layers)}

    def _chosen_layers(self, layers: Sequence[str] | None) -> dict[str, int]:
        """Return a dict from each name in ``layers`` to its index in ``layer_names``, in order.

        If ``layers`` is None, return all layers.
        """
        self._layer_filter(layers)
        indices = {name: index for index, name in enumerate(self.layer_names)}
        return indices if layers is None else {name: indices[name] for name in layers}
