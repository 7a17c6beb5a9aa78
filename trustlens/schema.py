"""Definitions of all recorded and derived quantities.

Notation, for one layer (one parameter tensor) and one optimizer step: ``w`` is the parameter
before the step, ``Δw`` its change, ``g`` the gradient that the optimizer used, ``m`` and ``v`` the
optimizer's moving averages of g and g², ``m̂`` and ``v̂`` these averages debiased, ``d`` the
optimizer's direction, without learning rate and decoupled decay, ``η`` the learning rate, ``λ`` the
decoupled weight decay, ``u = d + λw``, ``n`` the number of elements, ``t`` the layer's own step
count, ``r₁ = ‖w‖`` and ``r₂ = ‖u‖``. Norms are Euclidean, over all elements of the layer.

The trust ratio ``r`` follows You et al., "Large Batch Optimization for Deep Learning", 2019
(LAMB, Algorithm 2), with the conventions of the article "An intuitive understanding of the LAMB
optimizer": r = 1 where r₁ or r₂ is 0, and r ≤ 10.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Columns: TypeAlias = Mapping[str, NDArray[np.float64]]
"""Columns by name, each float64 (rows,); ``size`` is the number of elements of the layer."""

SCHEMA_VERSION: Final = 1
"""Version of the file format, increased when an older reader could misread newer files."""

Kind = Literal["norm", "ratio", "sum", "inner product", "maximum", "factor", "rate", "count"]


@dataclass(frozen=True, slots=True)
class Quantity:
    """A quantity: one number per (step, layer).

    Attributes
    ----------
    name : str
        Name of the column.
    symbol, title, formula : str
        Texts for axes, headings and tooltips. The formula uses the notation of this module's
        docstring.
    kind : str
        Kind of number, such as ``"norm"`` or ``"count"``.
    dtype : {"float", "int64"}, optional
        Stored type (``"float"`` is float32). None for a derived quantity, which is computed when
        it is read.
    scale : {"log", "linear"}
        Default scale of an axis.
    signed : bool
        Whether values may be negative.
    needs : tuple of str
        Columns that ``compute`` reads.
    compute : callable, optional
        Computes a derived quantity from these columns; None for a stored quantity.
    """

    name: str
    symbol: str
    title: str
    formula: str
    kind: Kind
    dtype: Literal["float", "int64"] | None = "float"
    scale: Literal["log", "linear"] = "log"
    signed: bool = False
    needs: tuple[str, ...] = ()
    compute: Callable[[Columns], NDArray[np.float64]] | None = None

    @property
    def derived(self) -> bool:
        """Whether the quantity is computed when it is read instead of being stored."""
        return self.compute is not None


def _rms(column: str) -> Callable[[Columns], NDArray[np.float64]]:
    return lambda c: c[column] / c["size"] ** 0.5


def _ratio(numerator: str, denominator: str) -> Callable[[Columns], NDArray[np.float64]]:
    return lambda c: c[numerator] / c[denominator]


_RECORDED: Final = (
    Quantity("trust_ratio", "r", "trust ratio", "min(r₁ / r₂, 10); 1 where r₁ or r₂ is 0", "ratio"),
    Quantity("weight_norm", "r₁", "weight norm", "‖w‖", "norm"),
    Quantity("direction_norm", "r₂", "direction norm", "‖d + λw‖", "norm"),
    Quantity("update_norm", "‖Δw‖", "update norm", "‖Δw‖, as applied", "norm"),
    Quantity("grad_norm", "‖g‖", "gradient norm", "‖g‖", "norm"),
    Quantity("undecayed_norm", "‖d‖", "direction norm without decay", "‖d‖", "norm"),
    Quantity("undecayed_dot_weight", "⟨d, w⟩", "direction · weight", "⟨d, w⟩", "inner product",
             scale="linear", signed=True),
    Quantity("update_dot_weight", "⟨Δw, w⟩", "update · weight", "⟨Δw, w⟩", "inner product",
             scale="linear", signed=True),
    Quantity("grad_dot_momentum", "⟨g, m⟩", "gradient · momentum", "⟨g, m⟩", "inner product",
             scale="linear", signed=True),
    Quantity("momentum_norm", "‖m‖", "momentum norm", "‖m‖", "norm"),
    Quantity("variance_sum", "Σv̂", "sum of second moments", "Σ v̂", "sum"),
    Quantity("surprise", "RMS²", "surprise", "Σ g² / max(v̂, ε²) / n", "ratio"),
    Quantity("update_max", "max|Δw|", "largest update", "max |Δw|", "maximum"),
    Quantity("grad_max", "max|g|", "largest gradient", "max |g|", "maximum"),
    Quantity("debias1", "1/(1−β₁ᵗ)", "debias factor of m", "1 / (1 − β₁ᵗ)", "factor",
             scale="linear"),
    Quantity("debias2", "1/(1−β₂ᵗ)", "debias factor of v", "1 / (1 − β₂ᵗ)", "factor",
             scale="linear"),
    Quantity("learning_rate", "η", "learning rate", "η of the layer's group", "rate"),
    Quantity("weight_decay", "λ", "weight decay", "decoupled λ of the layer's group", "rate",
             scale="linear"),
    Quantity("nonfinite", "#nonfinite", "elements not finite",
             "elements of g or w that are not finite", "count", "int64", scale="linear"),
    Quantity("zero_grad", "#(g=0)", "zero gradients", "elements of g equal to 0",
             "count", "int64", scale="linear"),
    Quantity("swallowed", "#swallowed", "swallowed updates",
             "elements with Δw = 0 although d + λw ≠ 0", "count", "int64", scale="linear"),
)  # fmt: skip

_DERIVED: Final = (
    Quantity("effective_rate", "η·r", "effective rate", "η · r", "rate", None,
             needs=("learning_rate", "trust_ratio"),
             compute=lambda c: c["learning_rate"] * c["trust_ratio"]),
    Quantity("update_ratio", "‖Δw‖/‖w‖", "update ratio", "‖Δw‖ / ‖w‖", "ratio", None,
             needs=("update_norm", "weight_norm"), compute=_ratio("update_norm", "weight_norm")),
    Quantity("update_rms", "RMS Δw", "update RMS", "‖Δw‖ / √n", "norm", None,
             needs=("update_norm", "size"), compute=_rms("update_norm")),
    Quantity("weight_rms", "RMS w", "weight RMS", "‖w‖ / √n", "norm", None,
             needs=("weight_norm", "size"), compute=_rms("weight_norm")),
)  # fmt: skip

QUANTITIES: Final[Mapping[str, Quantity]] = {q.name: q for q in (*_RECORDED, *_DERIVED)}
"""All quantities by name: the recorded ones in column order, then the derived ones."""

RECORDED: Final = tuple(q.name for q in _RECORDED)
"""Names of the recorded quantities: the columns of the table ``layers`` besides ``step`` and
``layer``, in their order."""

COUNTS: Final = tuple(q.name for q in _RECORDED if q.dtype == "int64")
"""Names of the recorded quantities that are stored as integers."""

TABLES: Final = ("layers", "steps", "metrics", "histograms")
"""The tables of a run, each a folder of Parquet files."""

ELEMENTS: Final = ("weight", "gradient", "update")
"""The three tensors of each layer whose elements can be recorded as histograms."""
