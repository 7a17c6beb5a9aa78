"""Derived quantities, computed at read time from the columns that are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trustlens.schema import QUANTITIES, Quantity
from trustlens.store.downsampled import Downsampled


def stored_columns(quantities: Sequence[Quantity]) -> list[str]:
    """Return the stored columns that quantities are read or computed from, each once."""
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
        The columns of :func:`stored_columns`, of one shape.
    sizes : float64 array
        Elements of the layer of each value; broadcasts against the columns.

    Returns
    -------
    array
        The column as it is for a recorded quantity; float64 for a derived one.
    """
    if quantity.compute is None:
        return stored[quantity.name]
    needs = {name: stored[name].astype(np.float64) for name in stored_columns([quantity])}
    with np.errstate(all="ignore"):  # 0/0 of a layer of zeros is NaN: not known
        return quantity.compute({**needs, "size": sizes})


def compute_downsampled(
    quantity: Quantity, stored: Mapping[str, Downsampled], sizes: NDArray[np.float64]
) -> Downsampled:
    """Return a quantity in buckets of steps from stored ones in the same buckets.

    A derived quantity is computed from the means. Its smallest and largest values are known only
    if it is computed from one quantity, with which it increases. ``sizes`` is float64 (layers,).
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
