"""Derived quantities, computed at read time from stored columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trustlens.schema import QUANTITIES, Quantity
from trustlens.store.downsampled import Downsampled


def stored_columns(quantities: Sequence[Quantity]) -> list[str]:
    """Return the names of the stored columns that ``quantities`` need, without duplicates."""
    needs = [need for each in quantities for need in (each.needs if each.derived else (each.name,))]
    return [need for need in dict.fromkeys(needs) if need in QUANTITIES]


def compute(
    quantity: Quantity, stored: Mapping[str, NDArray[Any]], sizes: NDArray[np.float64]
) -> NDArray[Any]:
    """Return the values of a quantity, computed from stored columns if it is derived.

    Parameters
    ----------
    quantity : Quantity
        Recorded or derived.
    stored : mapping of str to array
        The columns that :func:`stored_columns` names, all of the same shape.
    sizes : float64 array
        For each value, the number of elements of the layer to which the value belongs. The shape
        must be broadcastable to the shape of the columns.

    Returns
    -------
    array
        The stored column itself if the quantity is recorded; float64 values if it is derived.
    """
    if quantity.compute is None:
        return stored[quantity.name]
    needs = {name: stored[name].astype(np.float64) for name in stored_columns([quantity])}
    with np.errstate(all="ignore"):  # 0/0 is NaN (unknown): a layer of zeros
        return quantity.compute({**needs, "size": sizes})


def compute_downsampled(
    quantity: Quantity, stored: Mapping[str, Downsampled], sizes: NDArray[np.float64]
) -> Downsampled:
    """Return a quantity in buckets of steps, from stored columns in the same buckets.

    The mean of a derived quantity is computed from the columns' means in each bucket. A quantity
    that is derived from a single column increases with this column. Its extremes ``low`` and
    ``high`` are therefore computed from those of the column, or are None if the column has none.
    A quantity that is derived from several columns has None as extremes. ``sizes``, float64
    (layers,), contains the number of elements of each layer.
    """
    if quantity.compute is None:
        return stored[quantity.name]
    needs = {name: stored[name] for name in stored_columns([quantity])}
    first, *more = needs.values()

    def values(attribute: str) -> NDArray[np.float64]:
        columns = {name: getattr(each, attribute) for name, each in needs.items()}
        return compute(quantity, columns, sizes)

    has_extremes = not more and first.low is not None
    return Downsampled(
        first.steps,
        first.width,
        np.minimum.reduce([each.rows for each in needs.values()]),
        np.minimum.reduce([each.finite for each in needs.values()]),
        values("mean"),
        values("low") if has_extremes else None,
        values("high") if has_extremes else None,
    )
