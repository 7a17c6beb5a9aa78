"""Data of ridgelines: histograms of a quantity over the layers, one per step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from trustlens.analysis.names import quantity as quantity_named
from trustlens.analysis.run import Run
from trustlens.errors import UsageError
from trustlens.figures.axis import Scale, View, axis_edges, on_axis, readable, view_range
from trustlens.figures.sampling import (
    LayerValues,
    choose_scale,
    read_sample,
    run_list,
    span_of,
    why_empty,
)
from trustlens.figures.theme import assign_colors
from trustlens.figures.words import counted
from trustlens.schema import Quantity

Side = Literal["below", "above", "nonfinite"]

BANDWIDTH: Final = 0.015
"""Standard deviation of the smoothing kernel, as a fraction of the width of the axis.

The kernel is the same for all ridges of a view, so that a single layer is a narrow bump and equal
heights mean equal counts."""

_CELLS: Final = 4  # grid cells per bucket; values are assigned to cells before smoothing


@dataclass(frozen=True, slots=True)
class RunRidges:
    """The ridges of one run.

    Attributes
    ----------
    name, label : str
        Name and label of the run, not escaped.
    color : str
        The run's key in ``Theme.runs``.
    steps : int64 array of shape (ridges,)
        Ascending.
    heights : float32 array of shape (ridges, buckets)
        Number of layers per bucket, smoothed or counted.
    below, above, nonfinite : int64 arrays of shape (ridges,)
        Number of layers out of view: below the lowest edge, above the highest edge, or not
        finite. On a log axis 0 and negative values are below.
    layers : int
        Number of layers of the run.
    width : int
        1 if each ridge shows a single step. If ridges show means of buckets of steps, the number
        of steps of each bucket; ``steps`` then has the first step of each bucket.
    note : str
        Why there is nothing to draw; empty if there are values.
    """

    name: str
    label: str
    color: str
    steps: NDArray[np.int64]
    heights: NDArray[np.float32]
    below: NDArray[np.int64]
    above: NDArray[np.int64]
    nonfinite: NDArray[np.int64]
    layers: int
    width: int
    note: str

    def out_of_view(self) -> dict[Side, NDArray[np.int64]]:
        """Return ``below``, ``above`` and ``nonfinite`` by name, without those that are all 0."""
        sides: dict[Side, NDArray[np.int64]] = {
            "below": self.below,
            "above": self.above,
            "nonfinite": self.nonfinite,
        }
        return {side: counts for side, counts in sides.items() if counts.any()}


@dataclass(frozen=True, slots=True)
class Mark:
    """The steps at which layers are out of view at one end of the axis, or not finite.

    Attributes
    ----------
    side : "below", "above" or "nonfinite"
    place : str
        The side in words, such as "above 12.5".
    steps : int64 array of shape (marks,)
        Steps at which at least one layer is out of view.
    counts : int64 array of shape (marks,)
        Number of layers out of view.
    words : tuple of str
        A text for each step, such as "step 30: 2 layers above 12.5".
    """

    side: Side
    place: str
    steps: NDArray[np.int64]
    counts: NDArray[np.int64]
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RidgelineData:
    """Ridges of one or more runs with the same buckets.

    For a ridge of a single step, the heights, ``below``, ``above`` and ``nonfinite`` add up to the
    number of layers that have the quantity at that step. For a ridge of a bucket of steps, the sum
    may be larger: a layer with both finite and not finite values in the bucket counts twice.

    Attributes
    ----------
    quantity : Quantity
    scale : "log" or "linear"
    edges : float64 array of shape (buckets + 1,)
        Edges of the buckets, which have equal width on the axis.
    runs : tuple of RunRidges
    """

    quantity: Quantity
    scale: Scale
    edges: NDArray[np.float64]
    runs: tuple[RunRidges, ...]

    @property
    def peak(self) -> float:
        """The end of the shared z axis: the maximum height over all runs, but at least 0.1."""
        return max([0.1, *(float(run.heights.max(initial=0)) for run in self.runs)])

    @property
    def centers(self) -> NDArray[np.float64]:
        """Position of each bucket's centre on the axis: log₁₀ of the value on a log axis."""
        positions = on_axis(self.edges, self.scale)
        return (positions[1:] + positions[:-1]) / 2

    @property
    def values(self) -> NDArray[np.float64]:
        """Value at the centre of each bucket."""
        return np.power(10.0, self.centers) if self.scale == "log" else self.centers

    @property
    def time(self) -> tuple[float, float]:
        """First and last step of all runs.

        If there is only one step, the steps before and after it; without steps, (0, 1).
        """
        steps = np.concatenate([run.steps for run in self.runs])
        if not len(steps):
            return 0.0, 1.0
        first, last = float(steps.min()), float(steps.max())
        return (first, last) if last > first else (first - 1, last + 1)

    def lateness(self, run: RunRidges) -> NDArray[np.float64]:
        """Return each ridge's relative time: 0 at the first step of all runs, 1 at the last."""
        first, last = self.time
        return (run.steps.astype(np.float64) - first) / (last - first)

    def marks(self, run: RunRidges) -> list[Mark]:
        """Return a mark for each side at which layers of the run are out of view."""
        places: dict[Side, str] = {
            "below": f"below {readable(self.edges[0])}",
            "above": f"above {readable(self.edges[-1])}",
            "nonfinite": "not finite",
        }
        found: list[Mark] = []
        for side, counts in run.out_of_view().items():
            at, place = np.flatnonzero(counts), places[side]
            words = tuple(f"step {run.steps[i]}: {counted(counts[i], 'layer')} {place}" for i in at)
            found.append(Mark(side, place, run.steps[at], counts[at], words))
        return found


def ridgeline_data(
    runs: Run | Sequence[Run],
    quantity: str = "trust_ratio",
    *,
    ridges: int = 80,
    buckets: int = 160,
    scale: Literal["auto", "log", "linear"] = "auto",
    view: View = "robust",
    smooth: bool = True,
) -> RidgelineData:
    """Return histograms of a quantity over the layers at up to ``ridges`` steps of each run.

    Parameters
    ----------
    runs : Run or sequence of Run
        All runs get the same buckets. They also get the same steps if they recorded the same ones.
    quantity : str
        A recorded or derived quantity.
    ridges : int
        Maximum number of steps per run. The recorded steps nearest to steps that are evenly spaced
        over all runs are chosen, including each run's first and last. A long run is averaged over
        buckets of steps: at most ``ridges`` buckets, and at least half as many.
    buckets : int
        Number of histogram buckets.
    scale : "auto", "log" or "linear"
        ``"auto"`` is the preferred scale of the quantity.
    view : "robust", "full" or (low, high)
        The range of the axis: all values of all runs except outliers (see
        ``trustlens.figures.axis.robust_range``), all values, or the values from low to high.
    smooth : bool
        If True, each layer is a Gaussian bump of :data:`BANDWIDTH` whose sum within the axis is 1
        (a kernel density estimate times the number of layers). If False, each layer is counted in
        its bucket.

    Raises
    ------
    UsageError
        If no run is given, there is no such quantity, scale or view, or ``ridges`` or ``buckets``
        is less than 1.
    """
    chosen = run_list(runs)
    measured = quantity_named(quantity)
    if buckets < 1:
        raise UsageError(f"{buckets} buckets cannot be drawn; use at least 1")
    span = span_of(chosen)
    read = [read_sample(run, quantity, ridges, span) for run in chosen]
    axis = choose_scale(scale, measured, [part.values for part in read])
    edges = _edges([part.values for part in read], axis, view, buckets)
    parts = zip(chosen, assign_colors(chosen), read, strict=True)
    drawn = tuple(
        _ridges(run, color, part, edges=edges, scale=axis, quantity=measured, smooth=smooth)
        for run, color, part in parts
    )
    return RidgelineData(measured, axis, edges, drawn)


def _edges(
    values: Sequence[NDArray[np.float64]], scale: Scale, view: View, buckets: int
) -> NDArray[np.float64]:
    low, high = view_range(values, scale, view) or (0.1, 10.0)
    margin = (
        3 * BANDWIDTH if isinstance(view, str) else 0.0
    )  # so that bumps at the ends are not cut
    return axis_edges(low, high, buckets, scale, margin=margin)


def _ridges(
    run: Run,
    color: str,
    read: LayerValues,
    *,
    edges: NDArray[np.float64],
    scale: Scale,
    quantity: Quantity,
    smooth: bool,
) -> RunRidges:
    buckets = len(edges) - 1
    first, last = on_axis(edges[[0, -1]], scale)
    share = (on_axis(read.values, scale) - first) / (last - first)
    row, column = np.nonzero((share >= 0) & (share <= 1))
    heights = _heights(share[row, column], row, len(read.steps), buckets, smooth)
    return RunRidges(
        name=run.name,
        label=run.label,
        color=color,
        steps=read.steps,
        heights=heights.astype(np.float32),
        below=(share < 0).sum(axis=1),
        above=(share > 1).sum(axis=1),
        nonfinite=read.nonfinite.sum(axis=1),
        layers=len(run.layer_names),
        width=read.width,
        note=why_empty(run, read, quantity),
    )


def _heights(
    share: NDArray[np.float64], row: NDArray[np.intp], rows: int, buckets: int, smooth: bool
) -> NDArray[np.float64]:
    """Return the histogram of each row, (rows, buckets).

    ``share`` has the position of each value on the axis, from 0 to 1. ``row`` has the index of the
    row to which each value belongs.
    """
    if not smooth:
        bucket = np.minimum((share * buckets).astype(np.intp), buckets - 1)
        counts = np.bincount(row * buckets + bucket, minlength=rows * buckets)
        return counts.reshape(rows, buckets).astype(np.float64)
    # Linear binning: distribute each layer over the two nearest cells of a finer grid, then smooth
    # the grid (Wand, "Fast computation of multivariate kernel estimators", 1994).
    cells = buckets * _CELLS
    position = np.clip(share * cells - 0.5, 0, cells - 1)
    cell = np.minimum(position.astype(np.intp), cells - 2)
    part = position - cell
    at = row * cells + cell
    counts = np.bincount(at, 1 - part, rows * cells) + np.bincount(at + 1, part, rows * cells)
    return counts.reshape(rows, cells) @ _kernel(buckets)


@lru_cache(maxsize=8)
def _kernel(buckets: int) -> NDArray[np.float64]:
    """Return the weight with which each cell of a finer grid contributes to each bucket.

    The grid has ``_CELLS`` cells per bucket. The result has shape (cells, buckets). Each row sums
    to 1.
    """
    cells = buckets * _CELLS
    cell = (np.arange(cells) + 0.5) / cells
    bucket = (np.arange(buckets) + 0.5) / buckets
    weight = np.exp(-0.5 * ((bucket - cell[:, None]) / BANDWIDTH) ** 2)
    return weight / weight.sum(axis=1, keepdims=True)
