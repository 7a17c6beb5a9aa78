"""A recorded run, as DataFrames."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal, cast

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from trustlens.analysis.names import family_of, listed, quantity
from trustlens.analysis.tables import (
    StepSelection,
    buckets_of,
    needed,
    rows_of,
    steps_by_layers,
    values_of,
)
from trustlens.errors import RunError, UsageError
from trustlens.schema import RECORDED
from trustlens.store.arrow import codes, numbers
from trustlens.store.downsampled import Coarse, check_view, read_coarse
from trustlens.store.gaps import REPAIRED, missing
from trustlens.store.layout import RUN_FILE, RunInfo, read_info
from trustlens.store.location import Place, entries
from trustlens.store.reader import RunFiles, fingerprint, last_written
from trustlens.store.remote.staging import is_written
from trustlens.store.row_filter import Rows

Status = Literal["recording", "closed", "interrupted"]

SILENCE: Final = 120.0
"""Seconds without a write after which a run that was never closed counts as interrupted, where it
cannot be told whether the process that records it is there."""

LONG: Final = 8
"""Sealed files, of 131,072 rows or so each, beyond which a run is long."""

_NAMED: Final = 20  # layers named in a message


class Run:
    """One recorded run.

    Reading never changes a file. Each call reads what is on disk at that moment, so that the
    same object follows a run which is still being recorded.

    Attributes
    ----------
    path : Place
        The directory of the run.
    info : RunInfo
        What ``run.json`` said when it was last looked at, by ``status`` or as layers were read.
    files : RunFiles
        Its files.
    """

    def __init__(self, path: Place) -> None:
        self.path = path
        self._seen = _changed(path)
        self.info: RunInfo = read_info(path)
        self._named: tuple[RunInfo | None, list[str]] = (None, [])
        self.files = RunFiles(path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}: {len(self.layer_names)} layers, {self.status})"

    @property
    def name(self) -> str:
        """The name given to ``record``, else that of the directory."""
        return self.info.name

    @property
    def layer_names(self) -> list[str]:
        """Names of the layers, in the order of the model."""
        info, known = self.info, self._named
        if known[0] is not info:  # it was read anew, perhaps by another thread
            known = self._named = (info, [layer.name for layer in info.layers])
        return known[1]

    @property
    def family(self) -> str:
        """What the field calls the optimizer: ``"Adam"``, ``"LAMB"``, …; ``"unknown"`` if none."""
        return family_of(self.info.optimizers[0]) if self.info.optimizers else "unknown"

    @property
    def label(self) -> str:
        """A short text for legends: the name, and the optimizer with its learning rate."""
        groups = self.info.optimizers[0].groups if self.info.optimizers else ()
        rate = groups[0].get("lr") if groups else None
        known = isinstance(rate, (int, float))
        optimizer = f"{self.family}, lr {rate:g}" if known else self.family
        return f"{self.name} · {optimizer}"

    @property
    def status(self) -> Status:
        """Whether it is being recorded, was closed, or ended without being closed."""
        self._look()
        if self.info.closed is not None:
            return "closed"
        if REPAIRED in self.info.recorder:
            return "interrupted"
        held = is_written(self.path, self.info)
        if held is None:
            held = time.time() - last_written(self.path) <= SILENCE
        return "recording" if held else "interrupted"

    def missing(self) -> list[str]:
        """Return what the run lacks and why, a sentence each; empty if it lacks nothing.

        Such as steps for which there was no room on the disk, or those that a process did last
        which was killed. A run that is being recorded lacks nothing yet of its end.
        """
        dead = self.status == "interrupted"
        return missing(self.path, self.info, last_step=lambda: self.last_step, dead=dead)

    @property
    def version(self) -> str:
        """A text that changes whenever there is something new to read."""
        return fingerprint(self.path)

    @property
    def last_step(self) -> int:
        """The number of the last optimizer step; 0 if there was none."""
        span = self.files.span("steps")
        return 0 if span is None else span[1]

    def recorded_steps(self, steps: StepSelection = None) -> NDArray[np.int64]:
        """Return the steps that have rows in ``layers``, ascending, int64 of shape (steps,)."""
        return np.unique(self.files.read("layers", ["step"], rows_of(steps))["step"].to_numpy())

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

    def _read(
        self, columns: Sequence[str], layers: Sequence[str] | None, steps: StepSelection
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[str, NDArray[Any]]]:
        """Return of rows in no order their steps, layers as places in the model, and values."""
        chosen = [quantity(name) for name in listed("columns", columns)]
        needs = needed(chosen)
        rows = replace(rows_of(steps), texts=self._texts(layers))
        table = self.files.read("layers", ["step", "layer", *needs], rows)
        places = self._places(table["layer"])
        stored = {name: table[name].to_numpy() for name in needs}
        sizes = self._sizes(places)
        values = {each.name: values_of(each, stored, sizes) for each in chosen}
        return numbers(table["step"]), places, values

    @property
    def is_long(self) -> bool:
        """Whether its views are read from its overview, since it has too many rows for others."""
        return len(self.files.sealed("layers")) > LONG

    def overview(
        self,
        name: str,
        points: int = 400,
        *,
        layers: Sequence[str] | None = None,
        steps: tuple[int, int] | None = None,
        extremes: bool = True,
    ) -> Coarse:
        """Return one quantity in buckets of steps; quick, however long the run is.

        Parameters
        ----------
        name : str
            A recorded or derived quantity. A derived one is computed from the means of a bucket.
        points : int
            Buckets at most; there are no fewer than half as many, unless each has no more than 64
            recorded steps.
        layers : sequence of str, optional
            Names of layers; all if not given.
        steps : (int, int), optional
            The first and the last step; all if not given.
        extremes : bool
            Whether the least and the greatest value of each bucket are wanted. They are None of
            quantities that are derived from two others; counts above 2^24 are rounded to float32.

        Returns
        -------
        Coarse
            Arrays of shape (buckets, layers), the layers in the order asked for, each once.

        Raises
        ------
        UsageError
            A name is not a quantity, or not a layer of this run; no number of points, or steps.
        """
        return self.overviews([name], points, layers=layers, steps=steps, extremes=extremes)[name]

    def overviews(
        self,
        names: Sequence[str],
        points: int = 400,
        *,
        layers: Sequence[str] | None = None,
        steps: tuple[int, int] | None = None,
        extremes: bool = True,
    ) -> dict[str, Coarse]:
        """Return quantities by name, all in the same buckets, as :meth:`overview` returns one."""
        chosen = [quantity(name) for name in listed("names", names)]
        check_view(points, steps)
        self._texts(layers)
        places = {name: place for place, name in enumerate(self.layer_names)}
        wanted = list(places if layers is None else dict.fromkeys(layers))
        span = self.files.span("layers") or (1, 1) if steps is None else steps
        stored = read_coarse(self.files, needed(chosen), wanted, span, points, extremes=extremes)
        sizes = self._sizes(np.array([places[name] for name in wanted], np.int64))
        return {each.name: buckets_of(each, stored, sizes) for each in chosen}

    def trust_ratio(
        self, variant: str = "article", *, steps: StepSelection = None, **options: Any
    ) -> pd.DataFrame:
        """Return the trust ratio that a LAMB (You et al. 2019, Algorithm 2) would have applied.

        Of any run of the Adam family (Adam, AdamW, any LAMB), with its own weights, averages, ε,
        rate and decay: nothing is trained anew. Gradients count as the optimizer used them, after
        any clipping of its own. For any λ, ‖d+λw‖² = ‖d‖² + 2λ⟨d, w⟩ + λ²‖w‖² is had from what is
        stored. Where the run debiases and the variant does not, m/(√v+ε) is told from
        d·(1−β₁ᵗ)/√(1−β₂ᵗ), whose ε is smaller by √(1−β₂ᵗ): its elements are too large, by shares
        below ε/√v and below 1/√(1−β₂ᵗ) − 1; the other way round they are too small.

        Parameters
        ----------
        variant : str
            A key of ``trustlens.optim.LAMB_VARIANTS``, such as ``"apex"`` or ``"timm"``.
        steps : slice or sequence of int, optional
            Step numbers; all if not given.
        **options
            Options of ``trustlens.optim.Lamb`` from ``debias`` on, in place of the variant's;
            and ``weight_decay``, in place of the run's.

        Returns
        -------
        DataFrame
            As :meth:`matrix`. NaN also where d and λw cancel to less than a hundredth, of which
            the stored float32 keep too little.

        Raises
        ------
        UsageError
            There is no such variant, option or value; or it cannot be had from what this run
            stored, and the message says why.

        Examples
        --------
        >>> run.trust_ratio("apex", max_grad_norm=None, weight_decay=0.01).tail()
        """
        # Imported here: variants reads a Run, and stands below this module.
        from trustlens.analysis.variants import trust_ratio  # noqa: PLC0415

        return trust_ratio(self, variant, steps, options)

    def metrics(self) -> pd.DataFrame:
        """Return what was logged: ``step``, ``name``, ``value`` (float64), sorted by step."""
        table = self.files.read("metrics")
        frame = cast("pd.DataFrame", table.to_pandas())
        frame["name"] = frame["name"].astype(object)
        return frame.sort_values("step", kind="stable", ignore_index=True)

    def steps(self) -> pd.DataFrame:
        """Return one row a step: ``step``, ``time`` (UTC), ``skipped``; sorted by step."""
        frame = cast("pd.DataFrame", self.files.read("steps").to_pandas())
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
        table = self.files.read("histograms", rows=Rows(texts=texts))
        frame = pd.DataFrame({"step": table["step"].to_numpy()})
        places = self._places(table["layer"])
        frame["layer"] = pd.Categorical.from_codes(places, self.layer_names, ordered=True)
        frame["quantity"] = table["quantity"].cast(pa.string()).to_pandas().astype(object)
        frame["counts"] = [dict(pairs) for pairs in table["counts"].to_pylist()]
        return frame.sort_values(["step", "layer", "quantity"], ignore_index=True)

    def diagnose(self) -> pd.DataFrame:
        """Return findings, most suspect first; empty for a healthy run.

        Returns
        -------
        DataFrame
            ``step`` of the onset, ``layer``, ``kind``, ``score``, ``evidence`` in words.
        """
        # Imported here: divergence reads a Run, and stands below this module.
        from trustlens.analysis.diagnose import diagnose  # noqa: PLC0415

        return diagnose(self)

    def _look(self) -> None:
        """Read ``run.json`` anew if it has changed: a layer was added, the run closed, resumed."""
        now = _changed(self.path)
        if now is None or now != self._seen:
            self.info = read_info(self.path)
            self._seen = now

    def _places(self, layers: pa.ChunkedArray) -> NDArray[np.int64]:
        """Return the places in the model of a column of layers."""
        row, names = codes(layers)
        if not set(names).issubset(self.layer_names):
            self._look()  # layers were added since
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
        self._look()
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


def _changed(path: Place) -> tuple[int, int] | None:
    """Return what is another as soon as a run's ``run.json`` is; None if that is not known."""
    if isinstance(path, Path):
        with suppress(OSError):  # who reads it says so
            status = (path / RUN_FILE).lstat()
            return status.st_mtime_ns, status.st_size
        return None
    told = [each for each in entries(path) if each.name == RUN_FILE and each.changed]
    return (told[0].changed, told[0].size) if told else None
