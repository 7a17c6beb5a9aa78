"""A filter for the rows of a table: by step, and by the values of text columns."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trustlens.store.arrow import codes, column, numbers


@dataclass(frozen=True, slots=True)
class RowFilter:
    """Conditions on the rows of a table. A row passes if it meets all conditions that are given.

    Attributes
    ----------
    first, last : int, optional
        The first and the last step whose rows pass. Each may be given without the other.
    steps : int64 array (n,), optional
        The steps whose rows pass, in ascending order.
    texts : mapping of str to collection of str
        For each text column named here, the accepted values: a row passes if it has one of them.
    """

    first: int | None = None
    last: int | None = None
    steps: NDArray[np.int64] | None = None
    texts: Mapping[str, Collection[str]] = field(default_factory=dict[str, Collection[str]])

    @property
    def needs(self) -> tuple[str, ...]:
        """The names of the columns that have to be read to apply the filter."""
        of_steps = self.first is not None or self.last is not None or self.steps is not None
        return (*(("step",) if of_steps else ()), *self.texts)

    def may_be_between(self, first: int, last: int) -> bool:
        """Return whether a row with a step from ``first`` to ``last`` may pass."""
        if self.steps is not None:
            place = int(np.searchsorted(self.steps, first))
            return place < len(self.steps) and int(self.steps[place]) <= last
        return (self.first is None or self.first <= last) and (
            self.last is None or self.last >= first
        )

    def without(self, name: str) -> RowFilter:
        """Return a copy without the condition on the column ``name``."""
        return replace(self, texts={key: among for key, among in self.texts.items() if key != name})

    def of(self, table: pa.Table) -> pa.Table:
        """Return the rows of a table that pass the filter."""
        keep = np.ones(table.num_rows, np.bool_)
        if "step" in self.needs:
            step = numbers(table["step"])
            if self.first is not None:
                keep &= step >= self.first
            if self.last is not None:
                keep &= step <= self.last
            if self.steps is not None and len(step):
                low, high = np.searchsorted(self.steps, (step.min(), step.max() + 1))
                keep &= np.isin(step, self.steps[low:high])
        for name, texts in self.texts.items():
            keep &= _are_among(table[name], texts)
        return table if keep.all() else table.filter(column(keep, pa.bool_()))


ALL: Final = RowFilter()


def _are_among(names: pa.ChunkedArray, texts: Collection[str]) -> NDArray[np.bool_]:
    indices, present = codes(names)
    wanted = np.array([text in texts for text in present], np.bool_)
    return np.ones(len(names), np.bool_) if wanted.all() else wanted[indices]
