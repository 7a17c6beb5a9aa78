"""What our Triton kernels do with elements, and with the sums of chunks of them."""

# pyright: basic, reportMissingImports=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# ruff: noqa: ANN001, ANN201, N803, PLR0124, PLR0917, SIM300
# Triton is a language of its own: types are dtypes there, and capitals stand for constants.

import triton
import triton.language as tl

from trustlens.kernels.triton_sums import FIRST_MAXIMUM

# Between these a sum of squares has lost nothing to float32's range that would show.
LEAST = tl.constexpr(1e-27)
MOST = tl.constexpr(1e36)


def dtype_of(dtype):
    """Return what a kernel calls a torch dtype: 0 if there is none."""
    return 0 if dtype is None else getattr(tl, str(dtype).removeprefix("torch."))


@triton.jit
def place(address, start, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Return a pointer to an element of the tensor at an address."""
    pointer = address.to(tl.pointer_type(DTYPE))
    if ALIGNED:  # else each element is a read of its own
        pointer = tl.multiple_of(pointer, 16)
    return pointer + start


@triton.jit
def read(
    address, start, lanes, inside, DTYPE: tl.constexpr, ALIGNED: tl.constexpr, REAL: tl.constexpr
):
    """Return elements of the tensor at an address; zeros where there are none."""
    if DTYPE == 0:
        values = tl.zeros(lanes.shape, REAL)
    else:
        at = place(address, start, DTYPE, ALIGNED) + lanes
        values = tl.load(at, mask=inside, other=0).to(REAL)
    return values


@triton.jit
def share_of(share, values):
    """Return a term of a sum; none at all if its share is 0: 0·∞ would be NaN."""
    return tl.where(share != 0, share * values, 0.0)


@triton.jit
def root_of(values, REAL: tl.constexpr):
    """Return the square roots, rightly rounded."""
    return tl.sqrt_rn(values) if REAL == tl.float32 else tl.sqrt(values)


@triton.jit
def quotient(a, b, REAL: tl.constexpr):
    """Return a/b, rightly rounded."""
    return tl.div_rn(a, b) if REAL == tl.float32 else a / b


@triton.jit
def larger(a, b):
    """Return the larger of each two; NaN if one is."""
    return tl.where((a >= b) | (a != a), a, b)


@triton.jit
def maximum(values):
    """Return the largest; NaN if there is one."""
    broken = tl.max((values != values).to(tl.int32), axis=0)
    most = tl.max(tl.where(values == values, values, 0.0), axis=0)
    return tl.where(broken > 0, float("nan"), most)


@triton.jit
def total(values):
    """Return the sum of all lanes, made in float64."""
    return tl.sum(values.to(tl.float64), axis=0)


@triton.jit
def is_sound(summed, seen, bit: tl.constexpr):
    """Tell whether float32 could square what was summed: all 0, as its bit in `seen` tells, or."""
    return ((summed > LEAST) & (summed < MOST)) | (tl.max((seen >> bit) & 1, axis=0) == 0)


@triton.jit
def added(scratch, first, count, COLUMNS: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr):
    """Return the sums and maxima of a layer, from its rows of the scratch in their order.

    There are as many as the power of two `PADDED`: 0 after the scratch's own `COLUMNS`.
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
