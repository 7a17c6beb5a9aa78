"""Derived quantities, computed at read time from stored columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trustlens.schema import QUANTITIES, Quantity
from trustlens.store.downsampled import Downsampled


def stored_columns(quantities: Sequence[Quantity]) -> list[str]:
    """Return the stored columns needed for some quantities, without duplicates."""
    needs = [need for each in quantities for need in (each.needs if each.derived else (each.name,))]
    return [need for need in dict.fromkeys(needs) if need in QUANTITIES]


def compute(
    quantity: Quantity, stored: Mapping[str, NDArray[Any]], sizes: NDArray[np.float64]
) -> NDArray[Any]:
    """Return a quantity from stored columns.

    Parameters
    ----------
    quantity : Quantity
        Recorded or derived.
    stored : mapping of str to array
        The columns that :func:`stored_columns` names, all of the same shape.
    sizes : float64 array
        Number of elements of each value's layer; broadcasts against the columns.

    Returns
    -------
    array
        For a recorded quantity the stored column itself; for a derived one float64.
    """
    if quantity.compute is None:
        return stored[quantity.name]
    needs = {name: stored[name].astype(np.float64) for name in stored_columns([quantity])}
    with np.errstate(all="ignore"):  # 0/0, for a layer of zeros, is NaN: unknown
        return quantity.compute({**needs, "size": sizes})


def compute_downsampled(
    quantity: Quantity, stored: Mapping[str, Downsampled], sizes: NDArray[np.float64]
) -> Downsampled:
    """Return a downsampled quantity from downsampled stored columns with the same buckets.

    A derived quantity is computed from the buckets' means. Its minimum and maximum are None unless
    it depends on a single column: it then increases with that column. ``sizes`` is float64
    (layers,).
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
