"""Rows of a run: which are asked for, and how they stand as steps × layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trustlens.errors import UsageError
from trustlens.schema import QUANTITIES, Quantity
from trustlens.store.downsampled import Coarse
from trustlens.store.row_filter import Rows

StepSelection: TypeAlias = slice | Sequence[int] | NDArray[np.int64] | None
"""Step numbers, a slice being half-open as always in Python; None for all."""


def rows_of(steps: StepSelection) -> Rows:
    """Return what the store is asked for to have these steps.

    Raises
    ------
    UsageError
        A slice that skips steps, or what is no number of a step.
    """
    if steps is None:
        return Rows()
    if not isinstance(steps, slice):
        chosen = np.asarray(steps)
        if chosen.size and not np.issubdtype(chosen.dtype, np.integer):
            raise UsageError(f"steps={steps} has what is no number of a step; leave it out")
        return Rows(steps=np.unique(chosen.astype(np.int64)))
    if steps.step not in (None, 1):
        raise UsageError(f"steps={steps} skips steps; give a sequence of step numbers instead")
    return Rows(steps.start, None if steps.stop is None else steps.stop - 1)


def steps_by_layers(
    step: NDArray[np.int64], layer: NDArray[Any], values: NDArray[Any], names: Sequence[str]
) -> pd.DataFrame:
    """Return rows as steps × layers, NaN where there is none.

    ``step`` and ``values`` have shape (rows,), as has ``layer``: places among the ``names``.
    """
    row, numbers = pd.factorize(step, sort=True)  # np.unique would sort all of them
    table = np.full((len(numbers), len(names)), np.nan)
    table[row, layer] = values
    return pd.DataFrame(
        table,
        index=pd.Index(numbers, name="step"),
        columns=pd.Index(names, name="layer", dtype=object),
    )


def needed(chosen: Sequence[Quantity]) -> list[str]:
    """Return the recorded quantities that these are computed of, or are."""
    needs = [need for each in chosen for need in (each.needs if each.derived else (each.name,))]
    return [need for need in dict.fromkeys(needs) if need in QUANTITIES]


def values_of(
    chosen: Quantity, stored: Mapping[str, NDArray[Any]], sizes: NDArray[np.float64]
) -> NDArray[Any]:
    """Return a quantity of rows from what they store; ``sizes`` has their layers' elements."""
    if chosen.compute is None:
        return stored[chosen.name]
    needs = {name: stored[name].astype(np.float64) for name in needed([chosen])}
    with np.errstate(all="ignore"):  # 0/0 of a layer of zeros is NaN: not known
        return chosen.compute({**needs, "size": sizes})


def buckets_of(
    chosen: Quantity, stored: Mapping[str, Coarse], sizes: NDArray[np.float64]
) -> Coarse:
    """Return a quantity in buckets from those that are stored, ``sizes`` being float64 (layers,).

    The extremes of one that is computed are known where it is computed of one quantity only, in
    whose sense it grows.
    """
    if chosen.compute is None:
        return stored[chosen.name]
    of = {name: stored[name] for name in needed([chosen])}
    first, *more = of.values()

    def values(attribute: str) -> NDArray[np.float64]:
        return values_of(chosen, {name: getattr(of[name], attribute) for name in of}, sizes)

    one = not more and first.low is not None
    return Coarse(
        first.steps,
        first.width,
        np.minimum.reduce([each.rows for each in of.values()]),
        np.minimum.reduce([each.finite for each in of.values()]),
        values("mean"),
        values("low") if one else None,
        values("high") if one else None,
    )
