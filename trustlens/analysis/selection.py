"""Select rows by their steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from trustlens.errors import UsageError
from trustlens.store.row_filter import RowFilter

StepSelection: TypeAlias = slice | Sequence[int] | NDArray[np.int64] | None
"""Step numbers, or a half-open slice of step numbers; None for all."""


def row_filter(steps: StepSelection) -> RowFilter:
    """Return a filter that selects the rows of these steps.

    Raises
    ------
    UsageError
        If a slice skips steps, or a value is not an integer.
    """
    if steps is None:
        return RowFilter()
    if not isinstance(steps, slice):
        chosen = np.asarray(steps)
        if chosen.size and not np.issubdtype(chosen.dtype, np.integer):
            raise UsageError(f"steps={steps} has a value that is not a step number; remove it")
        return RowFilter(steps=np.unique(chosen.astype(np.int64)))
    if steps.step not in (None, 1):
        raise UsageError(f"steps={steps} skips steps; give a sequence of step numbers instead")
    return RowFilter(steps.start, None if steps.stop is None else steps.stop - 1)
