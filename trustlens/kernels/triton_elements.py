"""Triton functions that the kernels of ``recording`` and of ``optim`` share.

They load elements, compute with them, and add the sums of chunks.
"""

# pyright: basic, reportMissingImports=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# ruff: noqa: ANN001, ANN201, N803, PLR0124, PLR0917, SIM300
# Triton code is not typed Python: annotations are dtypes, and names in capitals are constants.

import triton
import triton.language as tl

from trustlens.kernels.triton_sums import FIRST_MAXIMUM

# A float32 sum of squares between these bounds did not overflow, and underflow does not matter.
LEAST = tl.constexpr(1e-27)
MOST = tl.constexpr(1e36)


def dtype_of(dtype):
    """Return the Triton dtype of a torch dtype; 0 for None."""
    return 0 if dtype is None else getattr(tl, str(dtype).removeprefix("torch."))


@triton.jit
def pointer_to(address, start, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Return a pointer to element `start` of the tensor at an address."""
    pointer = address.to(tl.pointer_type(DTYPE))
    if ALIGNED:  # without this hint, each element is loaded separately
        pointer = tl.multiple_of(pointer, 16)
    return pointer + start


@triton.jit
def read(
    address, start, lanes, inside, DTYPE: tl.constexpr, ALIGNED: tl.constexpr, REAL: tl.constexpr
):
    """Load the elements `start + lanes` of the tensor at an address, as dtype `REAL`.

    Lanes that are not `inside` are 0. If there is no tensor (`DTYPE` is 0), all lanes are 0.
    """
    if DTYPE == 0:
        values = tl.zeros(lanes.shape, REAL)
    else:
        at = pointer_to(address, start, DTYPE, ALIGNED) + lanes
        values = tl.load(at, mask=inside, other=0).to(REAL)
    return values


@triton.jit
def scaled(share, values):
    """Return `share * values`. If the share is 0, return 0, even where a value is infinite."""
    return tl.where(share != 0, share * values, 0.0)


@triton.jit
def square_root(values, REAL: tl.constexpr):
    """Return the square roots, correctly rounded."""
    return tl.sqrt_rn(values) if REAL == tl.float32 else tl.sqrt(values)


@triton.jit
def quotient(a, b, REAL: tl.constexpr):
    """Return a/b, correctly rounded."""
    return tl.div_rn(a, b) if REAL == tl.float32 else a / b


@triton.jit
def larger(a, b):
    """Return the elementwise maximum; NaN if either is NaN."""
    return tl.where((a >= b) | (a != a), a, b)


@triton.jit
def maximum(values):
    """Return the maximum of a block; NaN if the block contains NaN."""
    broken = tl.max((values != values).to(tl.int32), axis=0)
    most = tl.max(tl.where(values == values, values, 0.0), axis=0)
    return tl.where(broken > 0, float("nan"), most)


@triton.jit
def total(values):
    """Return the sum of all lanes, computed in float64."""
    return tl.sum(values.to(tl.float64), axis=0)


@triton.jit
def is_in_range(summed, seen, bit: tl.constexpr):
    """Return whether a sum of squares is between `LEAST` and `MOST`, or all squared values are 0.

    Bit number `bit` of each lane of `seen` is set if a value in that lane was not 0.
    """
    return ((summed > LEAST) & (summed < MOST)) | (tl.max((seen >> bit) & 1, axis=0) == 0)


@triton.jit
def combined_rows(
    scratch, first, count, COLUMNS: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr
):
    """Return the sums and maxima of a layer: its `count` rows of `scratch`, combined in order.

    The layer's rows start at index `first`. `ROWS` of them are loaded at a time. The result has
    `PADDED` columns, a power of two. Those after the first `COLUMNS` are 0.
    """
    column = tl.arange(0, PADDED)
    sums = tl.zeros([PADDED], tl.float64)
    most = tl.zeros([PADDED], tl.float64)
    for start in range(0, count, ROWS):
        row = start + tl.arange(0, ROWS)
        at = scratch + (first + row)[:, None] * COLUMNS + column[None, :]
        inside = (row < count)[:, None] & (column < COLUMNS)[None, :]
        values = tl.load(at, mask=inside, other=0.0)
        sums += tl.sum(values, axis=0)
        most = larger(most, maximum(values))
    return tl.where(column < FIRST_MAXIMUM, sums, most)
