"""Triton functions that count element histograms on a GPU, in the same pass as the sums.

A program counts one chunk of a layer. It counts most elements in a small local histogram and adds
that to the layer's histogram at the end. The local histogram covers only exponents near those of
the chunk's first block that is not all 0. The program adds the few elements with other exponents to
the layer's histogram one by one. The counts are integers, so the result does not depend on the
order of the additions.
"""

# pyright: basic, reportMissingImports=false, reportArgumentType=false
# pyright: reportOperatorIssue=false
# ruff: noqa: ANN001, ANN201, ANN202, PLR0917
# Triton code is not typed Python: annotations are dtypes, and names in capitals are constants.

import triton
import triton.language as tl

from trustlens.kernels.triton_sums import BUCKET_SHIFT, BUCKETS

# A local histogram has 32 slots of 4 buckets for each sign. Slot 0 is exponent 0: zeros and
# denormals. The other slots are 31 consecutive exponents. The highest is 4 above the largest
# exponent in the first block that is not all 0.
_BINS = tl.constexpr(256)
_DOUBLINGS = tl.constexpr(32)
_ABOVE = tl.constexpr(4)


@triton.jit
def mask_unless_zero(inside, flag):
    """Return the mask `inside`, or a mask without any lane if `flag` is 0.

    This is one expression over all lanes, so that loads with the mask stay vectorized.
    """
    return inside & (inside.to(tl.int32) * 0 + flag != 0)


@triton.jit
def _count(counts, bins, base, values, inside):
    """Count a block of elements; return the updated `bins` and `base`.

    Elements whose exponent has a slot are counted in the local histogram `bins`, the others in the
    layer's histogram `counts`. Slots 1 to 31 of `bins` are the exponents `base` + 1 to `base` + 31.
    `base` is -1 until a block has an element that is not 0; that block sets it.
    """
    bits = values.to(tl.float32).to(tl.int32, bitcast=True)
    exponent = (bits >> 23) & 255
    if base < 0:  # all elements of earlier blocks were 0
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
    """Add a local histogram to the layer's histogram `counts`."""
    place = tl.arange(0, _BINS)
    slot = (place >> 2) & (_DOUBLINGS - 1)
    exponent = tl.where(slot == 0, 0, base + slot)
    bucket = (place // (4 * _DOUBLINGS)) * (BUCKETS // 2) + exponent * 4 + (place & 3)
    tl.atomic_add(counts + bucket, bins.to(tl.int64), mask=bins > 0, sem="relaxed")


@triton.jit
def tally_block(counts, tally, values, after, inside, has_grad):
    """Count the elements of w, g and Δw in a block; return the updated tally.

    A tally is what a program has counted: `bins` and `base` of `_count` for each of w, g and Δw.
    """
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
    """Return the initial tally of a program: empty `bins`, and -1 for each `base`."""
    none = tl.zeros([_BINS], tl.int32)
    base = tl.full([], -1, tl.int32)
    return none, base, none, base, none, base


@triton.jit
def flush_tally(counts, tally):
    """Add a program's local histograms of w, g and Δw to those of the layer."""
    _flush_bins(counts, tally[0], tally[1])
    _flush_bins(counts + BUCKETS, tally[2], tally[3])
    _flush_bins(counts + 2 * BUCKETS, tally[4], tally[5])
