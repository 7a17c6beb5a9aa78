"""Rows of a run: which are asked for, and how they stand as steps × layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trustlens.errors import UsageError
from trustlens.schema import Columns
from trustlens.store.coarse import Coarse
from trustlens.store.selection import Rows

StepSelection: TypeAlias = slice | Sequence[int] | NDArray[np.int64] | None
"""Step numbers, a slice being half-open as always in Python; None for all."""


def rows_of(steps: StepSelection) -> Rows:
    """Return what the store is asked for to have these steps.

    Raises
    ------
    UsageError
        A slice that skips steps.
    """
    if steps is None:
        return Rows()
    if not isinstance(steps, slice):
        return Rows(steps=np.unique(np.asarray(steps, np.int64)))
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


def derived(
    compute: Callable[[Columns], NDArray[np.float64]],
    needs: Mapping[str, Coarse],
    sizes: NDArray[np.float64],
) -> Coarse:
    """Return a derived quantity in buckets from what it is computed of.

    ``sizes`` has the layers' elements, float64 of shape (layers,).

    Its extremes are known where it is computed of one quantity only, in whose sense it grows.
    """
    first, *more = needs.values()

    def computed(of: Callable[[Coarse], Any]) -> NDArray[np.float64]:
        columns = {name: of(each) for name, each in needs.items()}
        with np.errstate(all="ignore"):  # 0/0 of a layer of zeros is NaN: not known
            return compute({**columns, "size": sizes})

    one = not more and first.low is not None
    return Coarse(
        first.steps,
        first.width,
        np.minimum.reduce([each.rows for each in needs.values()]),
        np.minimum.reduce([each.finite for each in needs.values()]),
        computed(lambda each: each.mean),
        computed(lambda each: each.low) if one else None,
        computed(lambda each: each.high) if one else None,
    )
