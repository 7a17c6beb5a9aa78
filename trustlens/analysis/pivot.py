"""Arrange rows as arrays of steps × layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def pivot(
    step: NDArray[np.int64], layer: NDArray[Any], columns: Sequence[NDArray[Any]], layers: int
) -> tuple[NDArray[np.int64], list[NDArray[np.float64]]]:
    """Return the values of rows as arrays of steps × layers.

    An element is NaN if the layer has no row at the step.

    Parameters
    ----------
    step : int64 (rows,)
        Step of each row, in any order.
    layer : int array (rows,)
        Index of each row's layer, from 0 to ``layers`` − 1.
    columns : sequence of arrays (rows,)
        Each contains the values of one quantity.
    layers : int
        Number of layers.

    Returns
    -------
    steps : int64 (steps,)
        Ascending, without duplicates.
    arrays : list of float64 (steps, layers)
        One for each of ``columns``.
    """
    row, steps = pd.factorize(step, sort=True)  # np.unique would sort all rows, which is slower
    arrays: list[NDArray[np.float64]] = []
    for values in columns:
        array = np.full((len(steps), layers), np.nan)
        array[row, layer] = values
        arrays.append(array)
    return cast("NDArray[np.int64]", steps), arrays


def steps_by_layers(
    step: NDArray[np.int64], layer: NDArray[Any], values: NDArray[Any], names: Sequence[str]
) -> pd.DataFrame:
    """Return ``values`` as a DataFrame of steps × layers with the column labels ``names``.

    ``step``, ``layer`` and ``values`` have one element for each row, as in :func:`pivot`.
    """
    steps, (array,) = pivot(step, layer, [values], len(names))
    return pd.DataFrame(
        array,
        index=pd.Index(steps, name="step"),
        columns=pd.Index(names, name="layer", dtype=object),
    )
