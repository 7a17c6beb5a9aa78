"""Triton kernels for the steps of LAMB and LARS on a GPU, in two passes over many tensors.

The first pass updates LAMB's moving averages and computes the squared norms that the trust ratios
need. The second pass computes the direction again and applies it, scaled by the ratios. With
`MEASURE`, the passes also compute the sums of ``trustlens.kernels.sums``. This does not change the
other results.

A layer is divided into chunks. Each program processes one chunk and writes its sums to one row of a
scratch tensor; ``add_chunks`` adds the rows of a layer, always in the same order.
``fused_cuda.py`` builds the tables that the kernels read.

Elements are computed in float32. The sums for the trust ratios and those of the update are computed
in float64. Each lane computes the other sums in float32. If one of these other sums leaves the
range of float32, the program computes them all again in float64.
"""

# pyright: basic, reportMissingImports=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# ruff: noqa: ANN001, ANN201, ANN202, N803, PLR0917, SIM102
# In Triton, annotations are not Python types, and names of constexpr parameters are upper case.

import triton
import triton.language as tl

from trustlens.kernels.triton_elements import (
    combined_rows,
    is_in_range,
    larger,
    maximum,
    pointer_to,
    quotient,
    read,
    scaled,
    square_root,
    total,
)
from trustlens.kernels.triton_sums import (
    DIRECTION_SQUARES,
    GRAD_DOT_MOMENTUM,
    GRAD_MAX,
    GRAD_SQUARES,
    MOMENTUM_SQUARES,
    NONFINITE,
    OF_MOMENTUM,
    OF_VARIANCE,
    SUMS,
    SURPRISE_SUM,
    SWALLOWED,
    UNDECAYED_DOT_WEIGHT,
    UNDECAYED_SQUARES,
    UPDATE_DOT_WEIGHT,
    UPDATE_MAX,
    UPDATE_SQUARES,
    VARIANCE_SUM,
    WEIGHT_SQUARES,
    ZERO_GRAD,
)
from trustlens.optim.triton_numbers import (
    BETA1,
    BETA2,
    DECAY,
    DECAY_IN_UPDATE,
    DIVISOR,
    EPSILON,
    KEPT,
    MEAN,
    NORM_FACTOR,
    NUMBERS,
    OF_SUM,
    RATE,
    RATE_FACTOR,
    ROOT_FACTOR,
    SHARE1,
    SHARE2,
    numbers_of,
)

# Values of `RULE`: which optimizer. `LARS_WITHOUT` is LARS without momentum, which has no buffer.
LAMB = tl.constexpr(0)
LARS = tl.constexpr(1)
LARS_WITHOUT = tl.constexpr(2)

FIELDS = tl.constexpr(7)
"""Number of columns of the table `layers`.

They are the addresses of weight, momentum, variance and trust ratio; the number of elements; the
index of the first chunk; and the number of chunks.
"""


@triton.jit
def _chunk_of(layers, grads, chunks, first, CHUNK: tl.constexpr):
    """Return which chunk of which layer a program processes.

    The result has four items: the index of the chunk, the index of its layer, a tuple `layer`, and
    the number of elements of the chunk. `layer` has the addresses of weight, gradient, momentum and
    variance, and the index of the chunk's first element in the layer.
    """
    chunk = first + tl.program_id(0).to(tl.int64)
    index, start = tl.load(chunks + 2 * chunk), tl.load(chunks + 2 * chunk + 1) * CHUNK
    fields = layers + index * FIELDS
    layer = (
        tl.load(fields), tl.load(grads + index), tl.load(fields + 1), tl.load(fields + 2), start,
    )  # fmt: skip
    size = tl.minimum(tl.load(fields + 4) - start, CHUNK).to(tl.int32)
    return chunk, index, layer, size


@triton.jit
def _gradient(layer, n, lanes, inside, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    g = read(layer[1], layer[4], lanes, inside, DTYPE, ALIGNED[1], tl.float32)
    if n[DIVISOR] != 1.0:  # round the quotient to the gradients' dtype
        g = tl.div_rn(g, tl.zeros(lanes.shape, tl.float32) + n[DIVISOR])
        g = tl.where(inside, g.to(DTYPE).to(tl.float32), 0.0)
    return g


@triton.jit
def _adam_direction(m, v, n, inside, REAL: tl.constexpr):
    """Return LAMB's direction d = m̂/(√v̂ + ε), and √v̂."""
    root = square_root(v, REAL) * n[ROOT_FACTOR].to(REAL)
    denominator = (root + n[EPSILON].to(REAL)) * n[MEAN].to(REAL)
    return tl.where(inside, quotient(m, denominator, REAL), 0.0), root


@triton.jit
def _updated_averages(m, v, g, n, DTYPE: tl.constexpr):
    """Return LAMB's m and v after a step, given m and v before it."""
    share1, beta1 = n[SHARE1], n[BETA1]
    m = tl.where(share1 < 0.5, m + share1 * (g - m), g - beta1 * (g - m))  # as `torch.lerp`
    v = v * n[BETA2] + n[SHARE2] * g * g
    return m.to(DTYPE), v.to(DTYPE)


@triton.jit
def _add_to_sums(w, g, d, m, v, root, n, inside, sums, RULE: tl.constexpr, REAL: tl.constexpr):
    """Add a block of elements to the recorded sums that do not depend on the update.

    The last item of `sums` is `nonzero`. Its bits 0 to 3 say whether an element is not 0: bit 0 of
    g, bit 1 of d (LAMB: of d or m), bit 2 of d + λw, bit 3 of v.
    """
    u2, g2, d2, dw, gm, m2, v1, s2, zeros, nonfinite, largest, nonzero = sums
    u = d + scaled(n[DECAY].to(REAL), w)
    u2 += u * u
    g2 += g * g
    d2 += d * d
    dw += d * w
    nonzero = nonzero | (g != 0).to(tl.int32) | ((d != 0).to(tl.int32) << 1)
    nonzero = nonzero | ((u != 0).to(tl.int32) << 2)
    if RULE == LAMB:
        epsilon, root_factor = n[EPSILON].to(REAL), n[ROOT_FACTOR].to(REAL)
        least = tl.where(root < epsilon, epsilon, root)
        surprise = tl.where(inside, quotient(g, least, REAL), 0.0)
        gm += g * m
        m2 += m * m
        v1 += v * (root_factor * root_factor)
        s2 += surprise * surprise
        # Bit 1 is also set if m is not 0, since the quotient d may underflow to 0.
        nonzero = nonzero | ((m != 0).to(tl.int32) << 1) | ((v != 0).to(tl.int32) << 3)
    zeros += (inside & (g == 0)).to(tl.int32)
    finite = (tl.abs(w) < float("inf")) & (tl.abs(g) < float("inf"))
    nonfinite += (finite == 0).to(tl.int32)
    largest = larger(largest, tl.abs(g))
    return u2, g2, d2, dw, gm, m2, v1, s2, zeros, nonfinite, largest, nonzero


@triton.jit
def _first_block(
    layer, n, lanes, inside, state, RULE: tl.constexpr, DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr, MEASURE: tl.constexpr, FLOAT64: tl.constexpr,
):  # fmt: skip
    numerator, denominator, sums = state
    real = tl.float64 if FLOAT64 else tl.float32
    start = layer[4]
    g = _gradient(layer, n, lanes, inside, DTYPE, ALIGNED).to(real)
    w = read(layer[0], start, lanes, inside, DTYPE, ALIGNED[0], real)
    if RULE == LAMB:
        m = read(layer[2], start, lanes, inside, DTYPE, ALIGNED[0], real)
        v = read(layer[3], start, lanes, inside, DTYPE, ALIGNED[0], real)
        if not FLOAT64:
            m, v = _updated_averages(m, v, g, n, DTYPE)
            tl.store(pointer_to(layer[2], start, DTYPE, ALIGNED[0]) + lanes, m, mask=inside)
            tl.store(pointer_to(layer[3], start, DTYPE, ALIGNED[0]) + lanes, v, mask=inside)
            m, v = m.to(real), v.to(real)
        d, root = _adam_direction(m, v, n, inside, real)
        u = d + scaled(n[DECAY_IN_UPDATE], w)
    else:
        d, m, v, root = g, g, g, g  # only d is used
        u = tl.where(n[OF_SUM] != 0, g, g + n[DECAY] * w)
    if not FLOAT64:
        numerator += w.to(tl.float64) * w.to(tl.float64)
        denominator += u.to(tl.float64) * u.to(tl.float64)
    if MEASURE:
        sums = _add_to_sums(w, g, d, m, v, root, n, inside, sums, RULE, real)
    return numerator, denominator, sums


@triton.jit
def _first_pass_over_chunk(
    layer, n, size, squares, row, RULE: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr,
    MEASURE: tl.constexpr, FLOAT64: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Process a chunk or, with `FLOAT64`, only compute its recorded sums again in float64.

    Return False if a sum is not in the range of float32, so that the caller must call this
    function again with `FLOAT64`.
    """
    lanes = tl.arange(0, BLOCK)
    zero64, zero_int = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.int32)
    zero = zero64 if FLOAT64 else tl.zeros([BLOCK], tl.float32)
    sums = (zero, zero, zero, zero, zero, zero, zero, zero, zero_int, zero_int, zero, zero_int)
    state = (zero64, zero64, sums)
    everywhere = tl.full([BLOCK], True, tl.int1)  # a constant: loads need no mask
    for i in range(size // BLOCK):
        state = _first_block(
            layer, n, i * BLOCK + lanes, everywhere, state,
            RULE, DTYPE, ALIGNED, MEASURE, FLOAT64,
        )  # fmt: skip
    if size % BLOCK != 0:
        at = size // BLOCK * BLOCK + lanes
        state = _first_block(
            layer, n, at, at < size, state,
            RULE, DTYPE, ALIGNED, MEASURE, FLOAT64,
        )  # fmt: skip
    numerator, denominator, sums = state
    in_range = True
    if not FLOAT64:
        numerator = tl.sum(numerator, axis=0)
        factor = n[NORM_FACTOR].to(tl.float64)
        tl.store(squares, numerator * factor * factor)
        tl.store(squares + 1, tl.sum(denominator, axis=0))
        if MEASURE:
            tl.store(row + WEIGHT_SQUARES, numerator)
            in_range = (numerator < float("inf")) & (_store_sums(sums, row, RULE) != 0)
    else:
        _store_sums(sums, row, RULE)
    return in_range


@triton.jit
def _store_sums(sums, row, RULE: tl.constexpr):
    """Store a chunk's recorded sums in its row.

    Return 0 if one of the sums is not in the range of float32, else 1.
    """
    u2, g2, d2, dw, gm, m2, v1, s2, zeros, nonfinite, largest, nonzero = sums
    u2, g2, d2 = total(u2), total(g2), total(d2)
    tl.store(row + DIRECTION_SQUARES, u2)
    tl.store(row + GRAD_SQUARES, g2)
    tl.store(row + UNDECAYED_SQUARES, d2)
    tl.store(row + UNDECAYED_DOT_WEIGHT, total(dw))
    in_range = (
        is_in_range(g2, nonzero, 0) & is_in_range(d2, nonzero, 1) & is_in_range(u2, nonzero, 2)
    )
    if RULE == LAMB:
        m2, v1, s2 = total(m2), total(v1), total(s2)
        tl.store(row + GRAD_DOT_MOMENTUM, total(gm))
        tl.store(row + MOMENTUM_SQUARES, m2)
        tl.store(row + VARIANCE_SUM, v1)
        tl.store(row + SURPRISE_SUM, s2)
        in_range = in_range & is_in_range(m2, nonzero, 1) & is_in_range(s2, nonzero, 0)
        in_range = in_range & is_in_range(v1, nonzero, 3)
    else:  # if LARS has momentum, the second pass replaces the NaN in the columns of the momentum
        for column in tl.static_range(SUMS):
            if ((OF_MOMENTUM | OF_VARIANCE) >> column) & 1:
                tl.store(row + column, float("nan"))
    tl.store(row + NONFINITE, tl.sum(nonfinite, axis=0).to(tl.float64))
    tl.store(row + ZERO_GRAD, tl.sum(zeros, axis=0).to(tl.float64))
    tl.store(row + GRAD_MAX, maximum(largest).to(tl.float64))
    return in_range.to(tl.int32)


@triton.jit(do_not_specialize=["first"])
def first_pass(
    layers, grads, numbers, chunks, squares, sums, first,
    RULE: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr,
    MEASURE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Run the first pass over the chunks from index `first` on, one chunk in each program.

    `ALIGNED` has two flags: whether the addresses of all tensors except gradients are multiples of
    16, and whether those of all gradients are.
    """
    chunk, index, layer, size = _chunk_of(layers, grads, chunks, first, CHUNK)
    n = numbers_of(numbers + index * NUMBERS)
    chunk_squares, row = squares + 2 * chunk, sums + chunk * SUMS
    in_range = _first_pass_over_chunk(
        layer, n, size, chunk_squares, row, RULE, DTYPE, ALIGNED, MEASURE, False, BLOCK
    )
    if MEASURE:
        if in_range.to(tl.int32) == 0:
            tl.debug_barrier()  # the next call reads the averages that this one stored
            _first_pass_over_chunk(
                layer, n, size, chunk_squares, row, RULE, DTYPE, ALIGNED, True, True,
                BLOCK // 4,
            )  # fmt: skip


@triton.jit
def _scaled_direction(
    layer, n, ratio, lanes, inside, w, RULE: tl.constexpr, DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """Return the tensor that η multiplies, and the arguments `d`, `g`, `v` of `_swallowed`.

    η multiplies the direction scaled by the trust ratio. For LARS with momentum, η multiplies the
    momentum buffer, which this function updates. For LAMB, the argument `g` is m. For LARS, `v` is
    not used.
    """
    start = layer[4]
    if RULE == LAMB:
        m = read(layer[2], start, lanes, inside, DTYPE, ALIGNED[0], tl.float32)
        v = read(layer[3], start, lanes, inside, DTYPE, ALIGNED[0], tl.float32)
        d, _ = _adam_direction(m, v, n, inside, tl.float32)
        direction = d + scaled(n[DECAY_IN_UPDATE], w)
        direction = direction * n[RATE_FACTOR] * ratio
        g = m
    else:
        g = _gradient(layer, n, lanes, inside, DTYPE, ALIGNED)
        d, v = g, g  # only d is used
        direction = (g + n[DECAY] * w) * ratio
        if RULE == LARS:
            b = read(layer[2], start, lanes, inside, DTYPE, ALIGNED[0], tl.float32)
            b = (b * n[BETA1] + direction).to(DTYPE)
            tl.store(pointer_to(layer[2], start, DTYPE, ALIGNED[0]) + lanes, b, mask=inside)
            direction = b.to(tl.float32)
    return direction, d, g, v


@triton.jit
def _swallowed(update, d, g, v, w, n, inside, RULE: tl.constexpr):
    """Return 1 for each element whose update is 0 although d + λw is not 0, else 0.

    For LAMB, the argument `g` is m.

    If d + λw is 0 in float32 although it has a nonzero term, compute it in float64, where the terms
    may not underflow or cancel.
    """
    u = d + scaled(n[DECAY], w)
    swallowed = ((update == 0) & (u != 0)).to(tl.int32)
    term = g != 0
    if RULE == LAMB:
        term = term & (tl.abs(v) < float("inf"))
    unsure = (update == 0) & (u == 0) & (term | (tl.where(n[DECAY] != 0, w, 0.0) != 0))
    if tl.max(unsure.to(tl.int32), axis=0) > 0:
        exact = g.to(tl.float64)
        if RULE == LAMB:
            exact, _ = _adam_direction(exact, v.to(tl.float64), n, inside, tl.float64)
        exact += scaled(n[DECAY].to(tl.float64), w.to(tl.float64))
        swallowed += (unsure & (exact != 0)).to(tl.int32)
    return swallowed


@triton.jit
def _second_block(
    layer, n, ratio, lanes, inside, state, RULE: tl.constexpr, DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr, MEASURE: tl.constexpr,
):  # fmt: skip
    update2, update_w, gb, b2, swallowed, largest = state
    start = layer[4]
    w = read(layer[0], start, lanes, inside, DTYPE, ALIGNED[0], tl.float32)
    direction, d, g, v = _scaled_direction(layer, n, ratio, lanes, inside, w, RULE, DTYPE, ALIGNED)
    after = (w * n[KEPT] - n[RATE] * direction).to(DTYPE)
    tl.store(pointer_to(layer[0], start, DTYPE, ALIGNED[0]) + lanes, after, mask=inside)
    if MEASURE:
        update = tl.where(inside, after.to(tl.float32) - w, 0.0)
        wide = update.to(tl.float64)
        update2 += wide * wide
        update_w += wide * w.to(tl.float64)
        if RULE == LARS:
            wide = direction.to(tl.float64)
            b2 += wide * wide
            gb += wide * g.to(tl.float64)
        swallowed += _swallowed(update, d, g, v, w, n, inside, RULE)
        largest = larger(largest, tl.abs(update))
    return update2, update_w, gb, b2, swallowed, largest


@triton.jit(do_not_specialize=["first"])
def second_pass(
    layers, grads, numbers, chunks, ratios, sums, first,
    RULE: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr,
    MEASURE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Run the second pass over the chunks from index `first` on, one chunk in each program.

    `ratios` contains the trust ratio of each layer in float64. `ALIGNED` is as in `first_pass`.
    """
    chunk, index, layer, size = _chunk_of(layers, grads, chunks, first, CHUNK)
    n = numbers_of(numbers + index * NUMBERS)
    ratio = tl.load(ratios + index).to(tl.float32)
    if layer[4] == 0:
        address = tl.load(layers + index * FIELDS + 3)
        tl.store(address.to(tl.pointer_type(tl.float32)), ratio)
    lanes = tl.arange(0, BLOCK)
    zero64, zero_int = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.int32)
    state = (zero64, zero64, zero64, zero64, zero_int, tl.zeros([BLOCK], tl.float32))
    everywhere = tl.full([BLOCK], True, tl.int1)
    for i in range(size // BLOCK):
        state = _second_block(
            layer, n, ratio, i * BLOCK + lanes, everywhere, state,
            RULE, DTYPE, ALIGNED, MEASURE,
        )  # fmt: skip
    if size % BLOCK != 0:
        at = size // BLOCK * BLOCK + lanes
        state = _second_block(layer, n, ratio, at, at < size, state, RULE, DTYPE, ALIGNED, MEASURE)
    if MEASURE:
        update2, update_w, gb, b2, swallowed, largest = state
        row = sums + chunk * SUMS
        tl.store(row + UPDATE_SQUARES, tl.sum(update2, axis=0))
        tl.store(row + UPDATE_DOT_WEIGHT, tl.sum(update_w, axis=0))
        if RULE == LARS:
            tl.store(row + GRAD_DOT_MOMENTUM, tl.sum(gb, axis=0))
            tl.store(row + MOMENTUM_SQUARES, tl.sum(b2, axis=0))
        tl.store(row + SWALLOWED, tl.sum(swallowed, axis=0).to(tl.float64))
        tl.store(row + UPDATE_MAX, maximum(largest).to(tl.float64))


@triton.jit(do_not_specialize=["first"])
def square_gradients(
    layers, grads, chunks, squares, first,
    DTYPE: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store the sum of squares of each chunk's gradient in column 0 of `squares`.

    Column 1 becomes 0.
    """
    chunk, _, layer, size = _chunk_of(layers, grads, chunks, first, CHUNK)
    squared = tl.zeros([BLOCK], tl.float64)
    for start in range(0, size, BLOCK):
        lanes = start + tl.arange(0, BLOCK)
        g = read(layer[1], layer[4], lanes, lanes < size, DTYPE, ALIGNED[1], tl.float64)
        squared += g * g
    tl.store(squares + 2 * chunk, tl.sum(squared, axis=0))
    tl.store(squares + 2 * chunk + 1, 0.0)


@triton.jit
def add_chunks(
    layers, scratch, sums, COLUMNS: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr
):
    """Add the rows of a layer's chunks in order, one layer in each program."""
    index = tl.program_id(0).to(tl.int64)
    fields = layers + index * FIELDS
    column = tl.arange(0, PADDED)
    values = combined_rows(scratch, tl.load(fields + 5), tl.load(fields + 6), COLUMNS, PADDED, ROWS)
    tl.store(sums + index * COLUMNS + column, values, mask=column < COLUMNS)
