"""The steps of LAMB and LARS on a GPU, each in two passes over many tensors, as Triton kernels.

The first pass moves LAMB's averages and sums the squares that the trust ratios are made of; the
second, given the ratios, makes a layer's direction again from the averages and applies it. Both
also yield the sums of ``trustlens.kernels.sums`` where these are asked for: what they
write to the tensors does not depend on that.

A layer is cut into chunks, a program each, with a row of its own in a scratch; another kernel adds
the rows of a layer, always in the same order. Elements are float32 between reading and writing. The
ratios' sums and those of what was applied are float64; the others float32 over a lane, and made
again in float64 where float32 cannot hold them. ``fused_cuda.py`` lays out the tables.
"""

# pyright: basic, reportMissingImports=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# ruff: noqa: ANN001, ANN201, ANN202, N803, PLR0917, SIM102
# Triton is a language of its own: types are dtypes there, and capitals stand for constants.

import triton
import triton.language as tl

from trustlens.kernels.triton_elements import (
    added,
    is_sound,
    larger,
    maximum,
    place,
    quotient,
    read,
    root_of,
    share_of,
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
    ABOVE,
    APPLIED,
    BETA1,
    BETA2,
    DECAY,
    DIVISOR,
    EPSILON,
    KEPT,
    MEAN,
    NUMBERS,
    OF_SUM,
    RATE,
    RATE_FACTOR,
    ROOT_SHARE,
    SHARE1,
    SHARE2,
    numbers_of,
)

# Rules: LARS without momentum has no buffer.
LAMB = tl.constexpr(0)
LARS = tl.constexpr(1)
LARS_WITHOUT = tl.constexpr(2)

FIELDS = tl.constexpr(7)
"""Columns of `layers`: weight, momentum, variance, trust ratio, size, first chunk, chunks."""


@triton.jit
def _chunk_of(layers, grads, chunks, first, CHUNK: tl.constexpr):
    """Return a program's chunk, the layer's index, where it lies, and how many elements to do."""
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
    if n[DIVISOR] != 1.0:  # rounded as the gradients are
        g = tl.div_rn(g, tl.zeros(lanes.shape, tl.float32) + n[DIVISOR])
        g = tl.where(inside, g.to(DTYPE).to(tl.float32), 0.0)
    return g


@triton.jit
def _of_averages(m, v, n, inside, REAL: tl.constexpr):
    """Return m̂/(√v̂ + ε), and √v̂."""
    root = root_of(v, REAL) * n[ROOT_SHARE].to(REAL)
    below = (root + n[EPSILON].to(REAL)) * n[MEAN].to(REAL)
    return tl.where(inside, quotient(m, below, REAL), 0.0), root


@triton.jit
def _moved(m, v, g, n, DTYPE: tl.constexpr):
    """Return LAMB's averages after a step."""
    share1, beta1 = n[SHARE1], n[BETA1]
    m = tl.where(share1 < 0.5, m + share1 * (g - m), g - beta1 * (g - m))  # as `torch.lerp`
    v = v * n[BETA2] + n[SHARE2] * g * g
    return m.to(DTYPE), v.to(DTYPE)


@triton.jit
def _sums_of(w, g, d, m, v, root, n, inside, sums, RULE: tl.constexpr, REAL: tl.constexpr):
    """Add a block to the recorded sums that are known before the weights move."""
    u2, g2, d2, dw, gm, m2, v1, s2, zeros, broken, most, seen = sums
    u = d + share_of(n[DECAY].to(REAL), w)
    u2 += u * u
    g2 += g * g
    d2 += d * d
    dw += d * w
    seen = seen | (g != 0).to(tl.int32) | ((d != 0).to(tl.int32) << 1)
    seen = seen | ((u != 0).to(tl.int32) << 2)
    if RULE == LAMB:
        epsilon, root_share = n[EPSILON].to(REAL), n[ROOT_SHARE].to(REAL)
        least = tl.where(root < epsilon, epsilon, root)
        surprise = tl.where(inside, quotient(g, least, REAL), 0.0)
        gm += g * m
        m2 += m * m
        v1 += v * (root_share * root_share)
        s2 += surprise * surprise
        # Of m, not of d, which may have become 0.
        seen = seen | ((m != 0).to(tl.int32) << 1) | ((v != 0).to(tl.int32) << 3)
    zeros += (inside & (g == 0)).to(tl.int32)
    finite = (tl.abs(w) < float("inf")) & (tl.abs(g) < float("inf"))
    broken += (finite == 0).to(tl.int32)
    most = larger(most, tl.abs(g))
    return u2, g2, d2, dw, gm, m2, v1, s2, zeros, broken, most, seen


@triton.jit
def _first_block(
    layer, n, lanes, inside, state, RULE: tl.constexpr, DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr, MEASURE: tl.constexpr, AGAIN: tl.constexpr,
):  # fmt: skip
    above, below, sums = state
    real = tl.float64 if AGAIN else tl.float32
    start = layer[4]
    g = _gradient(layer, n, lanes, inside, DTYPE, ALIGNED).to(real)
    w = read(layer[0], start, lanes, inside, DTYPE, ALIGNED[0], real)
    if RULE == LAMB:
        m = read(layer[2], start, lanes, inside, DTYPE, ALIGNED[0], real)
        v = read(layer[3], start, lanes, inside, DTYPE, ALIGNED[0], real)
        if not AGAIN:
            m, v = _moved(m, v, g, n, DTYPE)
            tl.store(place(layer[2], start, DTYPE, ALIGNED[0]) + lanes, m, mask=inside)
            tl.store(place(layer[3], start, DTYPE, ALIGNED[0]) + lanes, v, mask=inside)
            m, v = m.to(real), v.to(real)
        d, root = _of_averages(m, v, n, inside, real)
        u = d + share_of(n[APPLIED], w)
    else:
        d, m, v, root = g, g, g, g  # of which only d is looked at
        u = tl.where(n[OF_SUM] != 0, g, g + n[DECAY] * w)
    if not AGAIN:
        above += w.to(tl.float64) * w.to(tl.float64)
        below += u.to(tl.float64) * u.to(tl.float64)
    if MEASURE:
        sums = _sums_of(w, g, d, m, v, root, n, inside, sums, RULE, real)
    return above, below, sums


@triton.jit
def _first_range(
    layer, n, size, squares, row, RULE: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr,
    MEASURE: tl.constexpr, AGAIN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Do a chunk, or sum it again in float64; tell whether the sums are right."""
    lanes = tl.arange(0, BLOCK)
    wide, none = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.int32)
    zero = wide if AGAIN else tl.zeros([BLOCK], tl.float32)
    sums = (zero, zero, zero, zero, zero, zero, zero, zero, none, none, zero, none)
    state = (wide, wide, sums)
    everywhere = tl.full([BLOCK], True, tl.int1)  # known to the compiler: no masks
    for i in range(size // BLOCK):
        state = _first_block(
            layer, n, i * BLOCK + lanes, everywhere, state,
            RULE, DTYPE, ALIGNED, MEASURE, AGAIN,
        )  # fmt: skip
    if size % BLOCK != 0:
        at = size // BLOCK * BLOCK + lanes
        state = _first_block(
            layer, n, at, at < size, state,
            RULE, DTYPE, ALIGNED, MEASURE, AGAIN,
        )  # fmt: skip
    above, below, sums = state
    sound = True
    if not AGAIN:
        above = tl.sum(above, axis=0)
        left = n[ABOVE].to(tl.float64)
        tl.store(squares, above * left * left)
        tl.store(squares + 1, tl.sum(below, axis=0))
        if MEASURE:
            tl.store(row + WEIGHT_SQUARES, above)
            sound = (above < float("inf")) & (_hand_in(sums, row, RULE) != 0)
    else:
        _hand_in(sums, row, RULE)
    return sound


@triton.jit
def _hand_in(sums, row, RULE: tl.constexpr):
    """Store a chunk's recorded sums; return 0 if float32 could not make them."""
    u2, g2, d2, dw, gm, m2, v1, s2, zeros, broken, most, seen = sums
    u2, g2, d2 = total(u2), total(g2), total(d2)
    tl.store(row + DIRECTION_SQUARES, u2)
    tl.store(row + GRAD_SQUARES, g2)
    tl.store(row + UNDECAYED_SQUARES, d2)
    tl.store(row + UNDECAYED_DOT_WEIGHT, total(dw))
    sound = is_sound(g2, seen, 0) & is_sound(d2, seen, 1) & is_sound(u2, seen, 2)
    if RULE == LAMB:
        m2, v1, s2 = total(m2), total(v1), total(s2)
        tl.store(row + GRAD_DOT_MOMENTUM, total(gm))
        tl.store(row + MOMENTUM_SQUARES, m2)
        tl.store(row + VARIANCE_SUM, v1)
        tl.store(row + SURPRISE_SUM, s2)
        sound = sound & is_sound(m2, seen, 1) & is_sound(s2, seen, 0)
        sound = sound & is_sound(v1, seen, 3)
    else:  # of LARS's buffer, where it has one, the second pass makes them
        for column in tl.static_range(SUMS):
            if ((OF_MOMENTUM | OF_VARIANCE) >> column) & 1:
                tl.store(row + column, float("nan"))
    tl.store(row + NONFINITE, tl.sum(broken, axis=0).to(tl.float64))
    tl.store(row + ZERO_GRAD, tl.sum(zeros, axis=0).to(tl.float64))
    tl.store(row + GRAD_MAX, maximum(most).to(tl.float64))
    return sound.to(tl.int32)


@triton.jit(do_not_specialize=["first"])
def first_pass(
    layers, grads, numbers, chunks, squares, sums, first,
    RULE: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr,
    MEASURE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Do the first pass over a chunk, from `first` on, a program each.

    `ALIGNED`: whether all addresses, and those of gradients, are multiples of 16.
    """
    chunk, index, layer, size = _chunk_of(layers, grads, chunks, first, CHUNK)
    n = numbers_of(numbers + index * NUMBERS)
    of_chunk, row = squares + 2 * chunk, sums + chunk * SUMS
    sound = _first_range(layer, n, size, of_chunk, row, RULE, DTYPE, ALIGNED, MEASURE, False, BLOCK)
    if MEASURE:
        if sound.to(tl.int32) == 0:
            tl.debug_barrier()  # the averages are read again
            _first_range(
                layer, n, size, of_chunk, row, RULE, DTYPE, ALIGNED, True, True,
                BLOCK // 4,
            )  # fmt: skip


@triton.jit
def _applied(
    layer, n, ratio, lanes, inside, w, RULE: tl.constexpr, DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """Return what moves w, times η, and d; beside them g, or LAMB's m and v."""
    start = layer[4]
    if RULE == LAMB:
        m = read(layer[2], start, lanes, inside, DTYPE, ALIGNED[0], tl.float32)
        v = read(layer[3], start, lanes, inside, DTYPE, ALIGNED[0], tl.float32)
        d, _ = _of_averages(m, v, n, inside, tl.float32)
        moving = d + share_of(n[APPLIED], w)
        moving = moving * n[RATE_FACTOR] * ratio
        g = m
    else:
        g = _gradient(layer, n, lanes, inside, DTYPE, ALIGNED)
        d, v = g, g  # of which only d is looked at
        moving = (g + n[DECAY] * w) * ratio
        if RULE == LARS:
            b = read(layer[2], start, lanes, inside, DTYPE, ALIGNED[0], tl.float32)
            b = (b * n[BETA1] + moving).to(DTYPE)
            tl.store(place(layer[2], start, DTYPE, ALIGNED[0]) + lanes, b, mask=inside)
            moving = b.to(tl.float32)
    return moving, d, g, v


@triton.jit
def _swallowed(update, d, g, v, w, n, inside, RULE: tl.constexpr):
    """Tell where nothing was applied although d + λw is not 0.

    Terms that vanish or cancel in float32 may not do so in float64, which decides then.
    """
    u = d + share_of(n[DECAY], w)
    swallowed = ((update == 0) & (u != 0)).to(tl.int32)
    term = g != 0
    if RULE == LAMB:
        term = term & (tl.abs(v) < float("inf"))
    unsure = (update == 0) & (u == 0) & (term | (tl.where(n[DECAY] != 0, w, 0.0) != 0))
    if tl.max(unsure.to(tl.int32), axis=0) > 0:
        exact = g.to(tl.float64)
        if RULE == LAMB:
            exact, _ = _of_averages(exact, v.to(tl.float64), n, inside, tl.float64)
        exact += share_of(n[DECAY].to(tl.float64), w.to(tl.float64))
        swallowed += (unsure & (exact != 0)).to(tl.int32)
    return swallowed


@triton.jit
def _second_block(
    layer, n, ratio, lanes, inside, state, RULE: tl.constexpr, DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr, MEASURE: tl.constexpr,
):  # fmt: skip
    update2, update_w, gb, b2, swallowed, most = state
    start = layer[4]
    w = read(layer[0], start, lanes, inside, DTYPE, ALIGNED[0], tl.float32)
    moving, d, g, v = _applied(layer, n, ratio, lanes, inside, w, RULE, DTYPE, ALIGNED)
    after = (w * n[KEPT] - n[RATE] * moving).to(DTYPE)
    tl.store(place(layer[0], start, DTYPE, ALIGNED[0]) + lanes, after, mask=inside)
    if MEASURE:
        update = tl.where(inside, after.to(tl.float32) - w, 0.0)
        wide = update.to(tl.float64)
        update2 += wide * wide
        update_w += wide * w.to(tl.float64)
        if RULE == LARS:
            wide = moving.to(tl.float64)
            b2 += wide * wide
            gb += wide * g.to(tl.float64)
        swallowed += _swallowed(update, d, g, v, w, n, inside, RULE)
        most = larger(most, tl.abs(update))
    return update2, update_w, gb, b2, swallowed, most


@triton.jit(do_not_specialize=["first"])
def second_pass(
    layers, grads, numbers, chunks, ratios, sums, first,
    RULE: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr,
    MEASURE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Do the second pass over a chunk likewise, given the layers' ratios, float64."""
    chunk, index, layer, size = _chunk_of(layers, grads, chunks, first, CHUNK)
    n = numbers_of(numbers + index * NUMBERS)
    ratio = tl.load(ratios + index).to(tl.float32)
    if layer[4] == 0:
        kept_at = tl.load(layers + index * FIELDS + 3)
        tl.store(kept_at.to(tl.pointer_type(tl.float32)), ratio)
    lanes = tl.arange(0, BLOCK)
    wide, none = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.int32)
    state = (wide, wide, wide, wide, none, tl.zeros([BLOCK], tl.float32))
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
        update2, update_w, gb, b2, swallowed, most = state
        row = sums + chunk * SUMS
        tl.store(row + UPDATE_SQUARES, tl.sum(update2, axis=0))
        tl.store(row + UPDATE_DOT_WEIGHT, tl.sum(update_w, axis=0))
        if RULE == LARS:
            tl.store(row + GRAD_DOT_MOMENTUM, tl.sum(gb, axis=0))
            tl.store(row + MOMENTUM_SQUARES, tl.sum(b2, axis=0))
        tl.store(row + SWALLOWED, tl.sum(swallowed, axis=0).to(tl.float64))
        tl.store(row + UPDATE_MAX, maximum(most).to(tl.float64))


@triton.jit(do_not_specialize=["first"])
def square_gradients(
    layers, grads, chunks, squares, first,
    DTYPE: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum the squares of a chunk's gradient into the first of its two squares."""
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
    """Add the chunks of a layer in their order: a program each."""
    index = tl.program_id(0).to(tl.int64)
    fields = layers + index * FIELDS
    column = tl.arange(0, PADDED)
    values = added(scratch, tl.load(fields + 5), tl.load(fields + 6), COLUMNS, PADDED, ROWS)
    tl.store(sums + index * COLUMNS + column, values, mask=column < COLUMNS)
