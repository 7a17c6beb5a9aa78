"""Triton functions that count element histograms on a GPU, in the same pass as the sums.

Each program has a local histogram of the exponents around those of its first nonzero block. It adds
the rare elements with other exponents to the layer's histogram one by one. The counts are integers,
so the result does not depend on the order of additions.
"""

# pyright: basic, reportMissingImports=false, reportArgumentType=false
# pyright: reportOperatorIssue=false
# ruff: noqa: ANN001, ANN201, ANN202, PLR0917
# Triton code is not typed Python: annotations are dtypes, and names in capitals are constants.

import triton
import triton.language as tl

from trustlens.kernels.triton_sums import BUCKET_SHIFT, BUCKETS

# A local histogram: for each sign 32 slots of 4 buckets. Slot 0 is exponent 0 (zeros, denormals),
# the others are 31 consecutive exponents, up to 4 above the largest of the first block.
_BINS = tl.constexpr(256)
_DOUBLINGS = tl.constexpr(32)
_ABOVE = tl.constexpr(4)


@triton.jit
def mask_unless_zero(inside, flag):
    """Return the mask, or no lane if `flag` is 0.

    Written as one expression over all lanes, so that loads stay vectorized.
    """
    return inside & (inside.to(tl.int32) * 0 + flag != 0)


@triton.jit
def _count(counts, bins, base, values, inside):
    """Count a block of elements in the local histogram `bins`, and the others in `counts`.

    The slots 1 to 31 of `bins` are the exponents `base` + 1 to `base` + 31. The first block with an
    element that is not 0 sets `base`, which is negative before.
    """
    bits = values.to(tl.float32).to(tl.int32, bitcast=True)
    exponent = (bits >> 23) & 255
    if base < 0:  # only zeros so far
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
def _flush_bins(counts, bins, base):
    """Add a local histogram to the layer's counts."""
    place = tl.arange(0, _BINS)
    slot = (place >> 2) & (_DOUBLINGS - 1)
    exponent = tl.where(slot == 0, 0, base + slot)
    bucket = (place // (4 * _DOUBLINGS)) * (BUCKETS // 2) + exponent * 4 + (place & 3)
    tl.atomic_add(counts + bucket, bins.to(tl.int64), mask=bins > 0, sem="relaxed")


@triton.jit
def tally_block(counts, tally, values, after, inside, has_grad):
    """Count a block of w, g and Δw; return the updated tally."""
    of_w, base_w, of_g, base_g, of_u, base_u = tally
    w = values[0].to(tl.float32)
    of_w, base_w = _count(counts, of_w, base_w, w, inside)
    of_g, base_g = _count(
        counts + BUCKETS, of_g, base_g, values[2], mask_unless_zero(inside, has_grad)
    )
    update = after.to(tl.float32) - w
    of_u, base_u = _count(counts + 2 * BUCKETS, of_u, base_u, update, inside)
    return of_w, base_w, of_g, base_g, of_u, base_u


@triton.jit
def empty_tally():
    """Return the initial tally of a program: empty `bins`, and no `base`, for each of w, g, Δw."""
    none = tl.zeros([_BINS], tl.int32)
    base = tl.full([], -1, tl.int32)
    return none, base, none, base, none, base


@triton.jit
def flush_tally(counts, tally):
    """Add a program's local histograms to those of the layer."""
    _flush_bins(counts, tally[0], tally[1])
    _flush_bins(counts + BUCKETS, tally[2], tally[3])
    _flush_bins(counts + 2 * BUCKETS, tally[4], tally[5])
