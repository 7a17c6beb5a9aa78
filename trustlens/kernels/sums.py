"""Every recorded sum over a layer's elements, declared once.

The backends of ``recording/statistics`` and the fused steps of ``optim`` return the sums as float64
of shape (layers, len(SUMS)), in the order of ``DECLARED``. The C header ``sums.h`` and the
constants of the Triton kernels (``triton_sums.py``) are generated from ``DECLARED``.

To add a sum, add a line to ``DECLARED`` and rewrite the header with
``python -m trustlens.kernels.sums``. Then add the arithmetic to each backend and each fused step,
and the quantity to ``schema.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, NamedTuple

from trustlens.element_bins import ELEMENT_BUCKETS, ELEMENT_SHIFT

Kind = Literal["sum", "count", "maximum"]
Need = Literal["gradient", "direction", "undecayed", "intended", "momentum", "variance"]


class Sum(NamedTuple):
    """One recorded sum.

    Attributes
    ----------
    name : str
        The name of the sum and of its column.
    quantity : str
        The recorded quantity of ``schema.py`` that is computed from the sum.
    kind : "sum", "count" or "maximum"
        How the results of a layer's chunks are combined: sums and counts by addition, maxima by
        their maximum. Counts are integers.
    needs : str, optional
        The input that the sum needs besides the weights; None if it needs no other input. Each
        need corresponds to an item of :data:`TENSORS`. If a layer lacks this input in a step, the
        backends return NaN for the sum.
    """

    name: str
    quantity: str
    kind: Kind
    needs: Need | None = None


DECLARED: Final[tuple[Sum, ...]] = (
    Sum("weight_squares", "weight_norm", "sum"),  # Σ w²
    Sum("direction_squares", "direction_norm", "sum", "direction"),  # Σ (d + λw)²
    Sum("update_squares", "update_norm", "sum"),  # Σ Δw²
    Sum("grad_squares", "grad_norm", "sum", "gradient"),  # Σ g²
    Sum("undecayed_squares", "undecayed_norm", "sum", "undecayed"),  # Σ d²
    Sum("undecayed_dot_weight", "undecayed_dot_weight", "sum", "undecayed"),  # Σ d·w
    Sum("update_dot_weight", "update_dot_weight", "sum"),  # Σ Δw·w
    Sum("grad_dot_momentum", "grad_dot_momentum", "sum", "momentum"),  # Σ g·m
    Sum("momentum_squares", "momentum_norm", "sum", "momentum"),  # Σ m²
    Sum("variance_sum", "variance_sum", "sum", "variance"),  # Σ v̂
    Sum("surprise_sum", "surprise", "sum", "variance"),  # Σ g² / max(v̂, ε²)
    Sum("nonfinite", "nonfinite", "count"),  # w or g not finite
    Sum("zero_grad", "zero_grad", "count", "gradient"),  # g = 0
    Sum("swallowed", "swallowed", "count", "intended"),  # Δw = 0 though d + λw is not
    Sum("update_max", "update_max", "maximum"),  # max |Δw|
    Sum("grad_max", "grad_max", "maximum", "gradient"),  # max |g|
)
"""The recorded sums: first all of kind "sum", then the counts, then the maxima."""

SUMS: Final = tuple(each.name for each in DECLARED)
"""Names of the columns, in order."""

FIRST_COUNT: Final = sum(each.kind == "sum" for each in DECLARED)
"""Index of the first count."""

FIRST_MAXIMUM: Final = sum(each.kind != "maximum" for each in DECLARED)
"""Index of the first maximum; all columns from there on are maxima."""

TENSORS: Final = ("gradient", "direction", "momentum", "variance")
"""Inputs of a backend that a layer may lack in a step.

If a layer has no gradient, the other three count as missing, too. The needs "undecayed" and
"intended" of a sum correspond to the input "direction".
"""

HEADER: Final = Path(__file__).with_name("sums.h")
"""Path of the C header, whose text :func:`c_header` generates."""


def columns_of(tensor: str) -> list[int]:
    """Return the indices of the columns that need the input ``tensor``, an item of `TENSORS`."""
    return [i for i, each in enumerate(DECLARED) if _tensor_of(each) == tensor]


def mask_of(tensor: str) -> int:
    """Return the result of :func:`columns_of` as a bit mask: bit i is column i."""
    return sum(1 << i for i in columns_of(tensor))


def c_header() -> str:
    """Return the text of the C header.

    It declares the columns, the inputs that each column needs, and the buckets of the histograms.
    """
    columns = "".join(f"    {each.name.upper()},\n" for each in DECLARED)
    bits = ", ".join(f"NEEDS_{name.upper()} = {1 << i}" for i, name in enumerate(TENSORS))
    needs = "".join(f"    {_c_need(each)},\n" for each in DECLARED)
    return f"""\
/* Generated from trustlens/kernels/sums.py by `python -m trustlens.kernels.sums`: do not edit. */
#ifndef TRUSTLENS_SUMS_H
#define TRUSTLENS_SUMS_H

/* The indices of the recorded sums of a layer. */
enum {{
{columns}    SUMS
}};
enum {{ FIRST_COUNT = {FIRST_COUNT}, FIRST_MAXIMUM = {FIRST_MAXIMUM} }};

/* The inputs that each sum needs, as a combination of bits. */
enum {{ {bits} }};
static const unsigned char SUM_NEEDS[SUMS] = {{
{needs}}};

/* The bucket of a float32 in an element histogram is its bit pattern >> BUCKET_SHIFT. */
enum {{ BUCKETS = {ELEMENT_BUCKETS}, BUCKET_SHIFT = {ELEMENT_SHIFT} }};

#endif
"""


def _tensor_of(declared: Sum) -> str | None:
    return "direction" if declared.needs in {"undecayed", "intended"} else declared.needs


def _c_need(declared: Sum) -> str:
    tensor = _tensor_of(declared)
    return "0" if tensor is None else f"NEEDS_{tensor.upper()}"


if __name__ == "__main__":
    HEADER.write_text(c_header(), encoding="utf-8")
