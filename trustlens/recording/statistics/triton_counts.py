"""Element histograms on a GPU, counted beside the sums, as Triton functions.

A program counts the doublings that its first block shows in a histogram of its own, and the rare
elements that lie elsewhere one by one. Counts are whole numbers: exact in any order.
"""

# pyright: basic, reportMissingImports=false, reportArgumentType=false
# pyright: reportOperatorIssue=false
# ruff: noqa: ANN001, ANN201, ANN202, PLR0917
# Triton is a language of its own: types are dtypes there, and capitals stand for constants.

import triton
import triton.language as tl

from trustlens.kernels.triton_sums import BUCKET_SHIFT, BUCKETS

# An element histogram while it grows: 31 doublings about the first block's, and what lies below
# all of them, in both signs.
_BINS = tl.constexpr(256)
_DOUBLINGS = tl.constexpr(32)
_ABOVE = tl.constexpr(4)


@triton.jit
def masked(inside, flag):
    """Return the mask if the number is not 0; the same for all, so that reads stay wide."""
    return inside & (inside.to(tl.int32) * 0 + flag != 0)


@triton.jit
def _count(counts, bins, base, values, inside):
    """Count a block of elements by their buckets, most of them in `bins`.

    `bins` are the doublings from `base` on, kept by the program, which the first block sets.
    What lies elsewhere is counted where all of them are in the end.
    """
    bits = values.to(tl.float32).to(tl.int32, bitcast=True)
    exponent = (bits >> 23) & 255
    if base < 0:  # nothing but zeros so far
        top = tl.max(tl.where(inside & (exponent < 255), exponent, 0), axis=0)
        base = tl.where(top > 0, tl.maximum(top + _ABOVE + 1 - _DOUBLINGS, 0), -1)
    slot = tl.where(exponent == 0, 0, exponent - base)
    near = (exponent == 0) | ((slot > 0) & (slot < _DOUBLINGS))
    place = ((bits >> 31) & 1) * (4 * _DOUBLINGS) + slot * 4 + ((bits >> BUCKET_SHIFT) & 3)
    bins += tl.histogram(tl.where(near, place, 0), _BINS, mask=inside & near)
    one = tl.full(bits.shape, 1, tl.int64)
    tl.atomic_add(
        counts + ((bits >> BUCKET_SHIFT) & (BUCKETS - 1)),
        one,
        mask=inside & (near == 0),
        sem="relaxed",
    )
    return bins, base


@triton.jit
def _hand_in_one(counts, bins, base):
    place = tl.arange(0, _BINS)
    slot = (place >> 2) & (_DOUBLINGS - 1)
    exponent = tl.where(slot == 0, 0, base + slot)
    bucket = (place // (4 * _DOUBLINGS)) * (BUCKETS // 2) + exponent * 4 + (place & 3)
    tl.atomic_add(counts + bucket, bins.to(tl.int64), mask=bins > 0, sem="relaxed")


@triton.jit
def tally_block(counts, tally, values, after, inside, has_grad):
    """Count a block of w, g and Δw."""
    of_w, base_w, of_g, base_g, of_u, base_u = tally
    w = values[0].to(tl.float32)
    of_w, base_w = _count(counts, of_w, base_w, w, inside)
    of_g, base_g = _count(counts + BUCKETS, of_g, base_g, values[2], masked(inside, has_grad))
    update = after.to(tl.float32) - w
    of_u, base_u = _count(counts + 2 * BUCKETS, of_u, base_u, update, inside)
    return of_w, base_w, of_g, base_g, of_u, base_u


@triton.jit
def no_tally():
    """Return what a program starts with: bins, and the doubling they begin at, of w, g and Δw."""
    none = tl.zeros([_BINS], tl.int32)
    base = tl.full([], -1, tl.int32)
    return none, base, none, base, none, base


@triton.jit
def hand_in(counts, tally):
    """Add a program's counts to those of the layer: exact in any order."""
    _hand_in_one(counts, tally[0], tally[1])
    _hand_in_one(counts + BUCKETS, tally[2], tally[3])
    _hand_in_one(counts + 2 * BUCKETS, tally[4], tally[5])
