"""Axes of figures: scales, ranges, bucket edges, ticks and readable numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from trustlens.errors import UsageError

Scale = Literal["log", "linear"]

View = Literal["robust", "full"] | tuple[float, float]
"""The range of an axis: without outliers, with all values, or from low to high."""

_FENCE: Final = 6.0
"""How far the robust range extends beyond the quartiles, in interquartile ranges."""


def parse_scale(scale: str, auto: Callable[[], Scale] | None = None) -> Scale:
    """Check the name of a scale and return the scale.

    Parameters
    ----------
    scale : "auto", "log" or "linear"
    auto : callable, optional
        A function that returns the scale for ``"auto"``. Without it, ``"auto"`` is an error.

    Raises
    ------
    UsageError
        If there is no such scale.
    """
    if scale == "auto" and auto is not None:
        return auto()
    if scale not in ("log", "linear"):
        names = "log, linear" if auto is None else "auto, log, linear"
        raise UsageError(f"'{scale}' is not a scale; choose one of: {names}")
    return "log" if scale == "log" else "linear"


def on_axis(values: NDArray[np.float64] | float, scale: Scale) -> NDArray[np.float64]:
    """Return positions on the axis: log₁₀ of the values on a log axis, else the values.

    On a log axis values ≤ 0 are at −∞. NaN stays NaN.
    """
    array = np.asarray(values, np.float64)
    if scale == "linear":
        return array
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(array <= 0, -np.inf, np.log10(array))


def full_range(values: NDArray[np.float64], scale: Scale) -> tuple[float, float] | None:
    """Return the lowest and the highest value that the axis can show, or None without values."""
    shown = values[np.isfinite(on_axis(values, scale))]
    return (float(shown.min()), float(shown.max())) if shown.size else None


def robust_range(values: NDArray[np.float64], scale: Scale) -> tuple[float, float] | None:
    """Return a range without the outliers that would flatten the rest.

    The limits are fences as in Tukey, "Exploratory Data Analysis" (1977), but wider: six
    interquartile ranges beyond the quartiles, measured on the scale of the axis and clipped to the
    data. The middle half of the values therefore covers at least a thirteenth of the axis. Separate
    groups of layers, such as biases and normalisation, stay in view. Tukey's outer fences, at three
    interquartile ranges, would exclude them. If the quartiles coincide, because most layers have
    the same value, the 10th and 90th or the 2.5th and 97.5th percentiles replace them.

    Parameters
    ----------
    values : float64 array
        Any shape. Values that are not finite, or not positive on a log axis, are ignored.
    scale : "log" or "linear"
        The axis.

    Returns
    -------
    tuple of float, or None
        The lowest and the highest value in view; None if there is no value to show.
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
            below, above = first - _FENCE * (last - first), last + _FENCE * (last - first)
            if below > positions.min():
                low = below if scale == "linear" else 10.0**below
            if above < positions.max():
                high = above if scale == "linear" else 10.0**above
            break
    return low, high


def view_range(
    values: Sequence[NDArray[np.float64]], scale: Scale, view: View
) -> tuple[float, float] | None:
    """Return the range of one axis for all arrays together.

    ``view`` is ``"robust"`` (without outliers), ``"full"`` (all values), or the range itself, as
    (low, high). None if ``"robust"`` or ``"full"`` finds no value that the axis can show.

    Raises
    ------
    UsageError
        If there is no such view, or an axis of this scale cannot show the range.
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
    """Return the edges of buckets that have equal width on the axis.

    Parameters
    ----------
    low, high : float
        The range. If it is a single point (up to rounding), it is widened to both sides: by a
        factor of 2 on a log axis, by a tenth of the value (0.5 around 0) on a linear one.
    buckets : int
        Number of buckets.
    scale : "log" or "linear"
        The axis.
    margin : float
        Fraction of the range to add at each end.

    Returns
    -------
    float64 array of shape (buckets + 1,)

    Raises
    ------
    UsageError
        If the range is reversed, not finite, or reaches 0 on a log axis.
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
        # After log₁₀ and 10ˣ, rounding could exclude the values at both ends.
        edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)
    return edges


def check_range(low: float, high: float, scale: Scale) -> None:
    """Raise UsageError if an axis of this scale cannot run from ``low`` to ``high``."""
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise UsageError(
            f"an axis cannot run from {low} to {high}; pass two finite numbers, the lower one first"
        )
    if scale == "log" and low <= 0:
        raise UsageError(
            f"a log axis cannot start at {low:g}; start above 0, or use scale='linear'"
        )


def ticks(low: float, high: float, scale: Scale, most: int = 7) -> list[tuple[float, str]]:
    """Return ticks within a range as pairs of value and text.

    On a log axis ticks are powers of ten, or every n-th power if there are more than ``most``. If
    the range has too few powers, ticks are 1, 2 and 5 times powers of ten, or evenly spaced. Ticks
    of a linear axis are evenly spaced, about ``most`` of them. The texts have up to 6 significant
    digits, or more if needed to be distinct.
    """
    values = _log_ticks(low, high, most) if scale == "log" else _even_ticks(low, high, most)
    written = ([number(value, digits) for value in values] for digits in range(6, 18))
    distinct = (texts for texts in written if len(set(texts)) == len(set(values)))
    return list(zip(values, next(distinct, map(str, values)), strict=True))


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
    """Return a number as readable text: 0.01, 1, 20k, 1.5M, 10⁻⁷, 3·10¹²."""
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
    """Return a number with three significant digits, formatted like :func:`number`."""
    return number(float(f"{value:.3g}"))
