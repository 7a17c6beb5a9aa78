"""Axes of figures: positions on a scale, ranges, bucket edges, ticks and readable numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from trustlens.errors import UsageError

Scale = Literal["log", "linear"]

View = Literal["robust", "full"] | tuple[float, float]
"""The range of an axis: without outliers, of all values, or from low to high."""

_REACH: Final = 6.0
"""How far the robust range extends beyond the quartiles, in interquartile ranges."""


def parse_scale(scale: str, auto: Callable[[], Scale] | None = None) -> Scale:
    """Return the scale that a caller asked for.

    Parameters
    ----------
    scale : "auto", "log" or "linear"
    auto : callable, optional
        Chooses the scale for ``"auto"``, which is refused if this is not given.

    Raises
    ------
    UsageError
        There is no such scale.
    """
    if scale == "auto" and auto is not None:
        return auto()
    if scale not in ("log", "linear"):
        names = "log, linear" if auto is None else "auto, log, linear"
        raise UsageError(f"'{scale}' is not a scale; choose one of: {names}")
    return "log" if scale == "log" else "linear"


def on_axis(values: NDArray[np.float64] | float, scale: Scale) -> NDArray[np.float64]:
    """Return positions on the axis: the logarithm to base 10, or the values themselves.

    On a log axis 0 and below is at −∞. NaN stays NaN.
    """
    array = np.asarray(values, np.float64)
    if scale == "linear":
        return array
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(array <= 0, -np.inf, np.log10(array))


def full_range(values: NDArray[np.float64], scale: Scale) -> tuple[float, float] | None:
    """Return the lowest and the highest value that the axis can show; ``None`` if there is none."""
    shown = values[np.isfinite(on_axis(values, scale))]
    return (float(shown.min()), float(shown.max())) if shown.size else None


def robust_range(values: NDArray[np.float64], scale: Scale) -> tuple[float, float] | None:
    """Return a range in which far-out values do not flatten the rest.

    Fences on the axis' own scale, as Tukey's ("Exploratory Data Analysis", 1977) but wider:
    beyond the quartiles by six times their distance, clipped to the data. So the middle half
    of the values keeps at least a thirteenth of the axis, and whole groups of layers that lie
    apart (biases, normalisation) stay in view, which Tukey's factor of three would cut off.
    Where the quartiles coincide, as when most layers have the same value, quantiles further out
    take their place.

    Parameters
    ----------
    values : float64 array
        Of any shape; what is not finite, or not positive on a log axis, is left out.
    scale : "log" or "linear"
        The axis.

    Returns
    -------
    tuple of float, or None
        Lowest and highest value in view; ``None`` where there is no value to show.
    """
    whole = full_range(values, scale)
    if whole is None:
        return None
    low, high = whole
    positions = on_axis(values, scale)
    positions = positions[np.isfinite(positions)]
    for share in (25, 10, 2.5):
        first, last = (float(x) for x in np.percentile(positions, (share, 100 - share)))
        if last > first:
            below, above = first - _REACH * (last - first), last + _REACH * (last - first)
            if below > positions.min():
                low = below if scale == "linear" else 10.0**below
            if above < positions.max():
                high = above if scale == "linear" else 10.0**above
            break
    return low, high


def view_range(
    values: Sequence[NDArray[np.float64]], scale: Scale, view: View
) -> tuple[float, float] | None:
    """Return the lowest and highest value of a view over all arrays; None if there is no value.

    Raises
    ------
    UsageError
        There is no such view, or no axis of that scale can cover it.
    """
    if isinstance(view, str):
        if view not in ("robust", "full"):
            raise UsageError(f"'{view}' is not a view; choose 'robust', 'full' or (low, high)")
        pooled = np.concatenate([part.ravel() for part in values])
        return robust_range(pooled, scale) if view == "robust" else full_range(pooled, scale)
    low, high = view
    check_range(low, high, scale)
    return low, high


def axis_edges(
    low: float, high: float, buckets: int, scale: Scale, *, margin: float = 0.0
) -> NDArray[np.float64]:
    """Return the edges of buckets that are equally wide on the axis.

    Parameters
    ----------
    low, high : float
        The range. Where it is a single point (but for rounding) it is widened around it: by a
        factor of 2 to either side on a log axis, by a tenth on a linear one.
    buckets : int
        How many.
    scale : "log" or "linear"
        The axis.
    margin : float
        Room to add at either end, as a share of the range.

    Returns
    -------
    float64 array of shape (buckets + 1,)

    Raises
    ------
    UsageError
        The range is empty, not finite, or reaches 0 on a log axis.
    """
    check_range(low, high, scale)
    first, last = (float(x) for x in on_axis(np.array([low, high]), scale))
    size = 1.0 if scale == "log" else max(abs(first), abs(last))
    if last - first <= 1e-5 * size:
        around = math.log10(2) if scale == "log" else 0.1 * size or 0.5
        first, last = first - around, last + around
    room = margin * (last - first)
    edges = np.linspace(first - room, last + room, buckets + 1)
    if scale == "log":
        edges = 10.0**edges
        # There and back by the logarithm, a value at the end could come to lie outside.
        edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)
    return edges


def check_range(low: float, high: float, scale: Scale) -> None:
    """Raise UsageError if no axis of that scale can run from ``low`` to ``high``."""
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise UsageError(f"an axis cannot run from {low} to {high}; give two numbers, lowest first")
    if scale == "log" and low <= 0:
        raise UsageError(
            f"a log axis cannot start at {low:g}; start above 0, or take scale='linear'"
        )


def ticks(low: float, high: float, scale: Scale, most: int = 7) -> list[tuple[float, str]]:
    """Return readable ticks within a range, as pairs of value and text.

    On a log axis whole powers of ten, thinned out to ``most``; 1-2-5 or even steps where the
    range holds too few of them. Their texts have as many digits as tell them apart.
    """
    values = _log_ticks(low, high, most) if scale == "log" else _even_ticks(low, high, most)
    written = ([number(value, digits) for value in values] for digits in range(6, 18))
    told_apart = (texts for texts in written if len(set(texts)) == len(set(values)))
    return list(zip(values, next(told_apart, map(str, values)), strict=True))


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    first, last = math.floor(math.log10(low)), min(math.ceil(math.log10(high)), 308)
    powers = [k for k in range(first, last + 1) if low <= 10.0**k <= high]
    if len(powers) >= 3 or (len(powers) == 2 and most <= 3):
        stride = math.ceil(len(powers) / most)
        return [10.0**k for k in powers if k % stride == 0]
    steps = [m * 10.0**k for k in range(first, last + 1) for m in (1, 2, 5)]
    between = [value for value in steps if low <= value <= high]
    return between if len(between) >= 3 else _even_ticks(low, high, most)


def _even_ticks(low: float, high: float, most: int) -> list[float]:
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def number(value: float, digits: int = 6) -> str:
    """Return a number as one would write it: 0.01, 1, 20k, 1.5M, 10⁻⁷, 3·10¹²."""
    size = abs(value)
    if size == 0 or not math.isfinite(value):
        return "0" if size == 0 else str(value)
    if 1e-4 <= size < 1e4:
        return f"{value:.{digits}g}"
    for unit, suffix in ((1e6, "M"), (1e3, "k")):
        if unit <= size < 1e3 * unit:
            return f"{value / unit:.{digits}g}" + suffix
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    mantissa = mantissa.rstrip("0").rstrip(".")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return {"1": power, "-1": f"-{power}"}.get(mantissa, f"{mantissa}·{power}")


def readable(value: float) -> str:
    """Return a number with three significant digits, written as :func:`number` does."""
    return number(float(f"{value:.3g}"))
