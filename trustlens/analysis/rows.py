"""Rows of a run: which are asked for, and how they stand as steps × layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from trustlens.errors import UsageError

StepSelection: TypeAlias = slice | Sequence[int] | NDArray[np.int64] | None
"""Step numbers, a slice being half-open as always in Python; None for all."""


def steps_expression(steps: StepSelection) -> pc.Expression | None:
    """Return what is true of the rows of these steps; None if it is true of all.

    Raises
    ------
    UsageError
        A slice that skips steps.
    """
    if steps is None:
        return None
    step = pc.field("step")
    if not isinstance(steps, slice):
        # Not numpy's own memory: Arrow's threads may drop it as the interpreter ends, and abort.
        return step.isin(pa.array(np.asarray(steps, np.int64).tolist(), pa.int64()))
    if steps.step not in (None, 1):
        raise UsageError(f"steps={steps} skips steps; give a sequence of step numbers instead")
    lower = None if steps.start is None else step >= steps.start
    upper = None if steps.stop is None else step < steps.stop
    return both(lower, upper)


def both(first: pc.Expression | None, second: pc.Expression | None) -> pc.Expression | None:
    """Return what is true where both are; None is true of all rows."""
    if first is None or second is None:
        return first if second is None else second
    return first & second


def steps_by_layers(rows: pd.DataFrame, values: NDArray[np.float64]) -> pd.DataFrame:
    """Return one value per row of ``Run.layers`` as steps × layers, NaN where there is none."""
    numbers, row = np.unique(rows["step"].to_numpy(), return_inverse=True)
    layers = rows["layer"].cat
    table = np.full((len(numbers), len(layers.categories)), np.nan)
    table[row, layers.codes.to_numpy()] = values
    return pd.DataFrame(
        table,
        index=pd.Index(numbers, name="step"),
        columns=pd.Index(list(layers.categories), name="layer", dtype=object),
    )
