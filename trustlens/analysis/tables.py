"""Reading the tables of a run as DataFrames."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Final, cast, overload

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from trustlens.analysis.derived import compute, compute_downsampled, stored_columns
from trustlens.analysis.names import listed, quantity
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
"""Sealed files, of 131,072 rows or so each, above which a run is long: its samples are read from
its overview."""

_NAMED: Final = 20  # layers named in a message


class RunTables:
    """The tables of one recorded run.

    Reading never changes a file. Each call reads what is on disk at that moment, so that the
    same object follows a run which is still being recorded.

    Attributes
    ----------
    path : Location
        The directory of the run.
    info : RunInfo
        The content of ``run.json`` when it was last read, by ``status`` or as layers were read.
    """

    def __init__(self, path: Address) -> None:
        self.path = locate(path)
        self._seen = (self.path / RUN_FILE).entry()
        self.info: RunInfo = read_info(self.path)
        self._named: tuple[RunInfo | None, list[str]] = (None, [])
        self._files = RunFiles(self.path)

    @property
    def name(self) -> str:
        """The name given to ``record``, else that of the directory."""
        return self.info.name

    @property
    def layer_names(self) -> list[str]:
        """Names of the layers, in the order of the model."""
        info, known = self.info, self._named
        if known[0] is not info:  # it was read again, perhaps by another thread
            known = self._named = (info, [layer.name for layer in info.layers])
        return known[1]

    @property
    def last_step(self) -> int:
        """The number of the last optimizer step; 0 if there was none."""
        span = self.span("steps")
        return 0 if span is None else span[1]

    def span(self, table: str = "layers") -> tuple[int, int] | None:
        """Return the first and the last step that a table has rows of; None if it has none.

        Parameters
        ----------
        table : str
            ``"layers"``, ``"steps"``, ``"metrics"`` or ``"histograms"``.
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
        """Return one row per (step, layer), sorted by step, then in the order of the model.

        Parameters
        ----------
        columns : sequence of str, optional
            Names of recorded or derived quantities; every recorded one if not given.
        layers : sequence of str, optional
            Names of layers; all if not given.
        steps : slice or sequence of int, optional
            Step numbers, a slice being half-open as always in Python; all if not given.

        Returns
        -------
        DataFrame
            ``step`` (int64), ``layer`` (ordered category), then the columns asked for: float32 as
            recorded, counts int64 (float64 if some are missing), derived ones float64. NaN is what
            the optimizer does not have.

        Raises
        ------
        UsageError
            A name is not a quantity, or not a layer of this run.
        """
        step, places, values = self._read(RECORDED if columns is None else columns, layers, steps)
        order = np.lexsort((places, step))
        layer = pd.Categorical.from_codes(places[order], self.layer_names, ordered=True)
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
            Step numbers; all if not given.

        Returns
        -------
        DataFrame
            float64, index ``step`` ascending, one column a layer in the order of the model. NaN
            where there is no value.

        Raises
        ------
        UsageError
            The name is not a quantity.
        """
        step, places, values = self._read([name], None, steps)
        return steps_by_layers(step, places, values[name], self.layer_names)

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
        """Return quantities in buckets of steps; quick, however long the run is.

        Parameters
        ----------
        names : str, or list or tuple of str
            A recorded or derived quantity, or several. A derived one is computed from the means of
            a bucket.
        points : int
            Buckets at most; there are no fewer than half as many, unless each has no more than 64
            recorded steps.
        layers : sequence of str, optional
            Names of layers; all if not given.
        steps : (int, int), optional
            The first and the last step; all if not given.
        extremes : bool
            Whether the smallest and the largest value of each bucket are wanted. They are None of
            quantities that are derived from two others; counts above 2^24 are rounded to float32.

        Returns
        -------
        Downsampled, or dict of str to Downsampled
            Arrays of shape (buckets, layers), the layers in the order asked for, each once.
            Several quantities are returned by name, all in the same buckets.

        Raises
        ------
        UsageError
            A name is not a quantity, or not a layer of this run; no number of points, or steps.
        """
        if isinstance(names, str):
            found = self.downsample([names], points, layers=layers, steps=steps, extremes=extremes)
            return found[names]
        chosen = [quantity(name) for name in names]
        check_view(points, steps)
        places = self._chosen_layers(layers)
        span = self.span() or (1, 1) if steps is None else steps
        stored = read_downsampled(
            self._files, stored_columns(chosen), list(places), span, points, extremes=extremes
        )
        sizes = self._sizes(np.array(list(places.values()), np.int64))
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
        """Return quantities at single steps if the run is short, else in buckets of steps.

        Parameters
        ----------
        names : sequence of str
            Recorded or derived quantities.
        points : int
            Steps or buckets at most.
        layers : sequence of str, optional
            Names of layers; all if not given.
        steps : (int, int), optional
            The first and the last step; all if not given.
        thin : bool
            Whether a short run is read only at the recorded steps nearest to ``points`` evenly
            spaced ones, its first and last among them. If False, every step is read.
        extremes : bool
            Whether the smallest and the largest value of each bucket are wanted.

        Returns
        -------
        dict of str to Sample
            By name, all at the same steps. Arrays of shape (steps, layers), the layers in the
            order asked for, each once. Buckets without rows are left out.

        Raises
        ------
        UsageError
            A name is not a quantity, or not a layer of this run; no number of points, or steps.
        """
        names = list(dict.fromkeys(listed("names", names)))
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
        step, places, values = self._read(read, layers, steps)
        wanted = np.array(list(self._chosen_layers(layers).values()), np.int64)
        columns = [np.ones(len(step)), *(values[name] for name in read)]
        numbered, (rows, *arrays) = pivot(step, places, columns, len(self.layer_names))
        there = (rows == 1)[:, wanted]
        of = {name: array[:, wanted] for name, array in zip(read, arrays, strict=True)}
        return {name: exact_sample(numbered, of[name], there, of["nonfinite"]) for name in names}

    def metrics(self) -> pd.DataFrame:
        """Return what was logged: ``step``, ``name``, ``value`` (float64), sorted by step."""
        table = self._files.read("metrics")
        frame = cast("pd.DataFrame", table.to_pandas())
        frame["name"] = frame["name"].astype(object)
        return frame.sort_values("step", kind="stable", ignore_index=True)

    def steps(self) -> pd.DataFrame:
        """Return one row a step: ``step``, ``time`` (UTC), ``skipped``; sorted by step."""
        frame = cast("pd.DataFrame", self._files.read("steps").to_pandas())
        return frame.sort_values("step", ignore_index=True)

    def histograms(self, layer: str | None = None, element: str | None = None) -> pd.DataFrame:
        """Return the element histograms: ``step``, ``layer``, ``quantity``, ``counts``.

        ``counts`` is a dict from the bucket (see ``trustlens.element_bins``) to the number of
        elements in it; buckets without any are left out. Sorted by step, layer, quantity.

        Parameters
        ----------
        layer : str, optional
            Only this layer.
        element : str, optional
            Only ``"weight"``, ``"gradient"`` or ``"update"``.

        Raises
        ------
        UsageError
            There is no such layer in this run.
        """
        texts = self._texts(None if layer is None else [layer])
        if element is not None:
            texts["quantity"] = [element]
        table = self._files.read("histograms", rows=RowFilter(texts=texts))
        frame = pd.DataFrame({"step": table["step"].to_numpy()})
        places = self._places(table["layer"])
        frame["layer"] = pd.Categorical.from_codes(places, self.layer_names, ordered=True)
        frame["quantity"] = table["quantity"].cast(pa.string()).to_pandas().astype(object)
        frame["counts"] = [dict(pairs) for pairs in table["counts"].to_pylist()]
        return frame.sort_values(["step", "layer", "quantity"], ignore_index=True)

    def _read(
        self, columns: Sequence[str], layers: Sequence[str] | None, steps: StepSelection
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[str, NDArray[Any]]]:
        """Return rows of ``layers`` in no order: steps, places of layers in the model, values."""
        chosen = [quantity(name) for name in listed("columns", columns)]
        needs = stored_columns(chosen)
        rows = replace(row_filter(steps), texts=self._texts(layers))
        table = self._files.read("layers", ["step", "layer", *needs], rows)
        places = self._places(table["layer"])
        stored = {name: table[name].to_numpy() for name in needs}
        sizes = self._sizes(places)
        values = {each.name: compute(each, stored, sizes) for each in chosen}
        return numbers(table["step"]), places, values

    def _refresh(self) -> None:
        """Read ``run.json`` again if it has changed: a layer was added, the run closed, resumed."""
        now = (self.path / RUN_FILE).entry()
        if now is None or now != self._seen:
            self.info = read_info(self.path)
            self._seen = now

    def _places(self, layers: pa.ChunkedArray) -> NDArray[np.int64]:
        """Return the places in the model of a column of layers."""
        row, names = codes(layers)
        if not set(names).issubset(self.layer_names):
            self._refresh()  # layers were added since
        places = {name: place for place, name in enumerate(self.layer_names)}
        found = np.array([places.get(name, -1) for name in names], np.int64)[row]
        unknown = {names[code] for code in np.unique(row[found < 0])}
        if unknown:
            raise RunError(
                f"'{self.path}' has rows of a layer '{min(unknown)}' that its {RUN_FILE} does not "
                f"name; restore the {RUN_FILE} that belongs to it"
            )
        return found

    def _sizes(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return how many elements the layers at these places of the model have."""
        return np.array([layer.size for layer in self.info.layers], np.float64)[places]

    def _texts(self, layers: Sequence[str] | None) -> dict[str, Collection[str]]:
        """Return that these layers are asked for, if they are of the run as it is now."""
        self._refresh()
        if layers is None:
            return {}
        known = self.layer_names
        unknown = set(listed("layers", layers)).difference(known)
        if unknown:
            more = f", … ({len(known)} in all)" if len(known) > _NAMED else ""
            raise UsageError(
                f"'{min(unknown)}' is not a layer of run '{self.name}'; "
                f"its layers are: {', '.join(known[:_NAMED])}{more}"
            )
        return {"layer": frozenset(layers)}

    def _chosen_layers(self, layers: Sequence[str] | None) -> dict[str, int]:
        """Return the places in the model of the layers asked for, each once, in their order."""
        self._texts(layers)
        places = {name: place for place, name in enumerate(self.layer_names)}
        return places if layers is None else {name: places[name] for name in layers}
