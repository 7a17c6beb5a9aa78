"""Triton kernels for the sums on a GPU: one pass over many tensors at once.

Each layer is divided into chunks, and each program sums one chunk. In each lane, a program adds
only a few values in float32. It then adds the results of the lanes in float64.

Float32 does not suffice for a chunk with infinite, NaN, huge or tiny values, or with terms that
cancel. The program sums such a chunk again in float64 by the plain formulas. Layers with float64
tensors are summed only in float64.

Each program writes its sums to one row of a scratch array. A second kernel adds the rows of each
layer, always in the same order. ``triton_launch.py`` prepares the tables that the kernels read.
"""

# pyright: basic, reportMissingImports=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# ruff: noqa: ANN001, ANN201, ANN202, N803, PLR0917, SIM108, SIM300
# Triton code is not typed Python: annotations are dtypes, and names in capitals are constants.

import triton
import triton.language as tl

from trustlens.kernels.triton_elements import (
    MOST,
    combined_rows,
    is_in_range,
    larger,
    maximum,
    quotient,
    read,
    scaled,
    square_root,
    total,
)
from trustlens.kernels.triton_sums import (
    BUCKETS,
    DIRECTION_SQUARES,
    FIRST_COUNT,
    GRAD_MAX,
    GRAD_SQUARES,
    MOMENTUM_SQUARES,
    NONFINITE,
    OF_DIRECTION,
    OF_GRADIENT,
    OF_MOMENTUM,
    OF_VARIANCE,
    SUMS,
    SURPRISE_SUM,
    SWALLOWED,
    UNDECAYED_SQUARES,
    UPDATE_MAX,
    UPDATE_SQUARES,
    VARIANCE_SUM,
    WEIGHT_SQUARES,
    ZERO_GRAD,
)
from trustlens.recording.statistics.triton_counts import (
    empty_tally,
    flush_tally,
    mask_unless_zero,
    tally_block,
)

FIELDS = tl.constexpr(9)
"""Number of columns of the table `layers`.

They are the addresses of the tensors after, before, base, variance and momentum; the number of
elements; the index of the first chunk; the number of chunks; and a combination of the bits below.
"""
NUMBERS = tl.constexpr(10)
"""Number of coefficients of a direction, which `coefficients_of` in layer_step.py returns."""
HAS_GRAD = tl.constexpr(1)
HAS_MOMENTUM = tl.constexpr(2)
HAS_VARIANCE = tl.constexpr(4)

# Bits of `seen`, for w, d + λw, Δw, g, d, m and v: whether any element was not 0. The last bit:
# whether float32 could not decide for some element if d + λw is 0.
_W = tl.constexpr(0)
_U = tl.constexpr(1)
_UPDATE = tl.constexpr(2)
_G = tl.constexpr(3)
_D = tl.constexpr(4)
_M = tl.constexpr(5)
_V = tl.constexpr(6)
_UNSURE = tl.constexpr(7)

_CANCELLED = tl.constexpr(2e-4)
"""Float32 is too imprecise if the terms of d, or those of d + λw, cancel too much.

This is so if Σ d² is below this share of the sum that it would have without any cancellation.
"""


@triton.jit
def _is_nonzero(share, values):
    """Return where `share * values` is not 0, even if the product underflows to 0 in float32."""
    return tl.where(share != 0, values, 0.0) != 0


@triton.jit
def _load_inputs(layer, numbers, lanes, inside, KINDS: tl.constexpr, REAL: tl.constexpr):
    """Load the tensors in the formula of d (``recording/optimizers/direction.py``).

    Return the weights after the step, g, x, v̂, m, √v̂, and the denominator of d. Lanes outside of
    the layer load 0.
    """
    _, _, grad_at, base_at, variance_at, momentum_at, start, has_grad, _ = layer
    after = read(layer[0], start, lanes, inside, KINDS[0], KINDS[7], REAL)
    g = read(grad_at, start, lanes, mask_unless_zero(inside, has_grad), KINDS[2], KINDS[8], REAL)
    m = read(momentum_at, start, lanes, inside, KINDS[5], KINDS[7], REAL)
    if KINDS[6]:  # x is m
        x = m
    else:
        x = read(base_at, start, lanes, inside, KINDS[3], KINDS[7], REAL)
    v = numbers[5].to(REAL) * read(variance_at, start, lanes, inside, KINDS[4], KINDS[7], REAL)
    root = square_root(v, REAL)
    den = tl.where(numbers[8] != 0, root + numbers[6].to(REAL), 1.0)
    return after, g, x, v, m, root, den


@triton.jit
def _weights(layer, numbers, after, step, lanes, inside, KINDS: tl.constexpr, REAL: tl.constexpr):
    """Return the weights before the step: the copy if there is one, else computed from `after`.

    `step` is d without the terms c·w and e·Δw.
    """
    if KINDS[1] != 0:
        w = read(layer[1], layer[6], lanes, inside, KINDS[1], KINDS[7], REAL)
    else:  # as `undo` in layer_step.py: two operations, with a rounding after each
        w = (after + numbers[0].to(REAL) * step).to(KINDS[0])
        # The factor is not rounded to float32. That error would be large compared with Δw.
        w = (w.to(tl.float64) * numbers[9]).to(KINDS[0]).to(REAL)
        w = tl.where(inside, tl.where(layer[8] != 0, w, after), 0.0)
    return w


@triton.jit
def _elements(layer, numbers, lanes, inside, KINDS: tl.constexpr, REAL: tl.constexpr):
    """Return four results for each element of a block; all are 0 in lanes outside of the layer.

    The results are: a tuple of the values that `_terms` takes; the sum of the magnitudes of d's
    terms; the weight after the step; and whether float32 cannot decide if d + λw is 0.
    """
    a, b, c, e, epsilon, decay = (
        numbers[1], numbers[2], numbers[3], numbers[4], numbers[6], numbers[7],
    )  # fmt: skip
    dividing = numbers[8] != 0
    after, g, x, v, m, root, den = _load_inputs(layer, numbers, lanes, inside, KINDS, REAL)
    of_grad, of_base = scaled(a.to(REAL), g), scaled(b.to(REAL), x)
    step = quotient(of_grad + of_base, den, REAL)
    w = _weights(layer, numbers, after, step, lanes, inside, KINDS, REAL)
    update = after - w
    of_weight, of_update = scaled(c.to(REAL), w), scaled(e.to(REAL), update)
    d = quotient(of_grad + of_base + of_weight, den, REAL) + of_update
    u = d + scaled(decay.to(REAL), w)
    if REAL == tl.float32:  # c + λ is computed first, so that c = -λ cancels exactly
        u = tl.where(dividing, u, step + of_update + scaled((c + decay).to(REAL), w))
    least = tl.where(v < epsilon.to(REAL) * epsilon.to(REAL), epsilon.to(REAL), root)
    if KINDS[4] == 0:
        surprise = tl.zeros(lanes.shape, REAL)
    else:
        surprise = tl.where(inside, quotient(g, least, REAL), 0.0)
    amount = tl.abs(of_grad) + tl.abs(of_base) + tl.where(dividing, tl.abs(of_weight), 0.0)
    amount = tl.where(inside, quotient(amount, den, REAL) + tl.abs(of_update), 0.0)
    # Whether u has a term that is not 0. Float32 may round the sum of the terms to 0.
    pulls = tl.where(dividing, tl.abs(c) + tl.abs(decay), c + decay)
    wanted = _is_nonzero(a, g) | _is_nonzero(b, x) | _is_nonzero(pulls, w)
    unsure = (update == 0) & (u == 0) & wanted
    if KINDS[4] != 0:
        unsure = unsure | (inside & (v < tl.where(epsilon < 1e-12, 1e-30, 0.0)))
    d, u = tl.where(inside, d, 0.0), tl.where(inside, u, 0.0)
    return (w, update, g, m, v, d, u, surprise), amount, after, unsure


@triton.jit
def _terms(values):
    """Return what an element adds to each sum of kind "sum", in the order of the columns."""
    w, update, g, m, v, d, u, surprise = values
    terms = (
        w * w, u * u, update * update, g * g, d * d, d * w, update * w, g * m, m * m, v,
        surprise * surprise,
    )  # fmt: skip
    tl.static_assert(len(terms) == FIRST_COUNT)
    return terms


@triton.jit
def _no_terms(zero):
    """Return the initial values of the sums of kind "sum": a tuple of zeros."""
    none = ()
    for _ in tl.static_range(FIRST_COUNT):
        none = none + (zero,)  # noqa: RUF005 — Triton does not support unpacking
    return none


@triton.jit
def _add_terms(s, t):
    """Return the elementwise sum of two tuples."""
    added = ()
    for i in tl.static_range(FIRST_COUNT):
        added = added + (s[i] + t[i],)  # noqa: RUF005
    return added


@triton.jit
def _add_block(
    layer, numbers, counts, lanes, inside, state, KINDS: tl.constexpr, COUNT: tl.constexpr
):
    sums, amounts, counted, most_update, most_grad, seen, tally = state
    values, amount, after, unsure = _elements(layer, numbers, lanes, inside, KINDS, tl.float32)
    w, update, g, m, v, d, u, _ = values
    sums = _add_terms(sums, _terms(values))
    amounts += amount * amount
    zero = (inside & (g == 0)).to(tl.int32)
    counted += zero | (((update == 0) & (u != 0)).to(tl.int32) << 16)
    most_update = tl.maximum(most_update, tl.abs(update))
    most_grad = tl.maximum(most_grad, tl.abs(g))
    seen = seen | ((w != 0).to(tl.int32) << _W) | ((u != 0).to(tl.int32) << _U)
    seen = seen | ((update != 0).to(tl.int32) << _UPDATE) | ((g != 0).to(tl.int32) << _G)
    seen = seen | ((d != 0).to(tl.int32) << _D) | ((m != 0).to(tl.int32) << _M)
    seen = seen | ((v != 0).to(tl.int32) << _V) | (unsure.to(tl.int32) << _UNSURE)
    if COUNT:
        tally = tally_block(counts, tally, values, after, inside, layer[7])
    return sums, amounts, counted, most_update, most_grad, seen, tally


@triton.jit
def _are_accurate(s, amounts, seen, layer, numbers, KINDS: tl.constexpr):
    """Return whether float32 was accurate enough for the sums `s` of a chunk."""
    known = layer[8]
    c, decay, dividing = numbers[3], numbers[7], numbers[8] != 0
    w2, u2, d2 = s[WEIGHT_SQUARES], s[DIRECTION_SQUARES], s[UNDECAYED_SQUARES]
    sound = is_in_range(w2, seen, _W) & is_in_range(s[UPDATE_SQUARES], seen, _UPDATE)
    sound = sound & is_in_range(s[GRAD_SQUARES], seen, _G)
    of_d = amounts + tl.where(dividing, 0.0, c * c) * w2
    pull = tl.where(dividing, decay, c + decay)
    of_u = amounts + pull * pull * w2
    direction = is_in_range(u2, seen, _U) & is_in_range(d2, seen, _D) & (of_d < MOST)
    direction = direction & (d2 >= _CANCELLED * of_d) & (u2 >= _CANCELLED * of_u)
    direction = direction & (tl.max((seen >> _UNSURE) & 1, axis=0) == 0)
    if KINDS[5] != 0:
        direction = direction & is_in_range(s[MOMENTUM_SQUARES], seen, _M)
    if KINDS[4] != 0:
        direction = direction & is_in_range(s[VARIANCE_SUM], seen, _V)
        direction = direction & is_in_range(s[SURPRISE_SUM], seen, _G)
    return sound & (direction | (known == 0))


@triton.jit
def _sum_in_float32(
    layer, numbers, size, row, counts, KINDS: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr
):
    """Sum a chunk in float32 and store the sums in `row`, a row of the scratch array.

    Return whether the sums are accurate; if not, they have to be computed again in float64.
    """
    lanes = tl.arange(0, BLOCK)
    zero = tl.zeros([BLOCK], tl.float32)
    none = tl.zeros([BLOCK], tl.int32)
    state = (_no_terms(zero), zero, none, zero, zero, none, empty_tally())
    everywhere = tl.full([BLOCK], True, tl.int1)  # a constant: loads need no mask
    for i in range(size // BLOCK):
        state = _add_block(
            layer, numbers, counts, i * BLOCK + lanes, everywhere, state, KINDS, COUNT
        )
    if size % BLOCK != 0:
        at = size // BLOCK * BLOCK + lanes
        state = _add_block(layer, numbers, counts, at, at < size, state, KINDS, COUNT)
    sums, amounts, counted, most_update, most_grad, seen, tally = state
    if COUNT:
        flush_tally(counts, tally)
    totals = _totals(sums)
    for i in tl.static_range(FIRST_COUNT):
        tl.store(row + i, totals[i])
    tl.store(row + NONFINITE, 0.0)  # if an element is not finite, these sums are rejected
    tl.store(row + ZERO_GRAD, tl.sum(counted & 0xFFFF, axis=0).to(tl.float64))
    tl.store(row + SWALLOWED, tl.sum(counted >> 16, axis=0).to(tl.float64))
    tl.store(row + UPDATE_MAX, tl.max(most_update, axis=0).to(tl.float64))
    tl.store(row + GRAD_MAX, tl.max(most_grad, axis=0).to(tl.float64))
    amounts = tl.sum(amounts.to(tl.float64), axis=0)
    return _are_accurate(totals, amounts, seen, layer, numbers, KINDS)


@triton.jit
def _totals(s):
    """Return the sum of all lanes for each item of the tuple `s`, in float64."""
    totals = ()
    for i in tl.static_range(FIRST_COUNT):
        totals = totals + (total(s[i]),)  # noqa: RUF005
    return totals


@triton.jit
def _sum_in_float64(
    layer, numbers, size, row, counts, KINDS: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr
):
    """Sum a chunk in float64 and store the sums in `row`, a row of the scratch array."""
    zero = tl.zeros([BLOCK], tl.float64)
    none = tl.zeros([BLOCK], tl.int32)
    sums = _no_terms(zero)
    broken, zeros, swallowed, most_update, most_grad = none, none, none, zero, zero
    tally = empty_tally()
    for start in range(0, size, BLOCK):
        lanes = start + tl.arange(0, BLOCK)
        inside = lanes < size
        values, _, after, _ = _elements(layer, numbers, lanes, inside, KINDS, tl.float64)
        w, update, g, _, _, _, u, _ = values
        sums = _add_terms(sums, _terms(values))
        finite = (tl.abs(w) < float("inf")) & (tl.abs(g) < float("inf"))
        broken += (finite == 0).to(tl.int32)
        zeros += (inside & (g == 0)).to(tl.int32)
        swallowed += ((update == 0) & (u != 0)).to(tl.int32)
        most_update = larger(most_update, tl.abs(update))
        most_grad = larger(most_grad, tl.abs(g))
        if COUNT:
            tally = tally_block(counts, tally, values, after, inside, layer[7])
    if COUNT:
        flush_tally(counts, tally)
    totals = _totals(sums)
    for i in tl.static_range(FIRST_COUNT):
        tl.store(row + i, totals[i])
    tl.store(row + NONFINITE, tl.sum(broken, axis=0).to(tl.float64))
    tl.store(row + ZERO_GRAD, tl.sum(zeros, axis=0).to(tl.float64))
    tl.store(row + SWALLOWED, tl.sum(swallowed, axis=0).to(tl.float64))
    tl.store(row + UPDATE_MAX, maximum(most_update))
    tl.store(row + GRAD_MAX, maximum(most_grad))


@triton.jit
def _load_coefficients(at, DIVIDES: tl.constexpr):
    """Load a direction's coefficients, in the order in which the functions above index `numbers`.

    The factor by which the decay multiplies w is replaced by its inverse and comes last.
    """
    rate, a, b, c = tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)
    e, h, epsilon, decay = tl.load(at + 4), tl.load(at + 5), tl.load(at + 6), tl.load(at + 7)
    divides = tl.load(at + 9) if DIVIDES else tl.full([], 0, tl.float64)
    return rate, a, b, c, e, h, epsilon, decay, divides, 1.0 / tl.load(at + 8)


@triton.jit(do_not_specialize=["first", "count"], do_not_specialize_on_alignment=["counts"])
def measure_chunks(
    layers, changing, forms, chunks, scratch, counts, first, count,
    KINDS: tl.constexpr, WIDE: tl.constexpr, COUNT: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum the chunks from index `first` on, one chunk in each program.

    `KINDS` has nine items. First come the dtypes of after, before, gradient, base, variance and
    momentum; 0 for a missing tensor. Three flags follow. The first says whether the base is the
    momentum. The second says whether the addresses of all tensors except for the gradient are
    multiples of 16, and the third says this of all gradients. `WIDE`: whether to sum in float64.
    `COUNT`: whether to count the element histograms, too.
    """
    chunk = first + tl.program_id(0)
    index = tl.load(chunks + 2 * chunk).to(tl.int64)
    start = tl.load(chunks + 2 * chunk + 1).to(tl.int64) * CHUNK
    fields = layers + index * FIELDS
    grad, form = tl.load(changing + index), tl.load(changing + count + index)
    has_grad = (grad != 0).to(tl.int32)
    known = has_grad * (form >= 0).to(tl.int32)
    layer = (
        tl.load(fields), tl.load(fields + 1), grad, tl.load(fields + 2), tl.load(fields + 3),
        tl.load(fields + 4), start, has_grad, known,
    )  # fmt: skip
    numbers = _load_coefficients(forms + tl.maximum(form, 0) * NUMBERS, KINDS[4] != 0)
    size = tl.minimum(tl.load(fields + 5) - start, CHUNK).to(tl.int32)
    row = scratch + chunk.to(tl.int64) * SUMS
    here = counts + index * (3 * BUCKETS)
    if WIDE:
        _sum_in_float64(layer, numbers, size, row, here, KINDS, COUNT, BLOCK // 4)
    elif _sum_in_float32(layer, numbers, size, row, here, KINDS, COUNT, BLOCK) == 0:
        _sum_in_float64(layer, numbers, size, row, here, KINDS, False, BLOCK // 4)


@triton.jit(do_not_specialize=["count"])
def add_chunks(layers, changing, scratch, sums, count, PADDED: tl.constexpr, ROWS: tl.constexpr):
    """Add the rows of a layer's chunks in order, one layer in each program.

    Sums that need a tensor which the layer lacks become NaN.
    """
    index = tl.program_id(0).to(tl.int64)
    fields = layers + index * FIELDS
    size, first, chunks = tl.load(fields + 5), tl.load(fields + 6), tl.load(fields + 7)
    has, grad = tl.load(fields + 8), tl.load(changing + index)
    column = tl.arange(0, PADDED)
    values = combined_rows(scratch, first, chunks, SUMS, PADDED, ROWS)
    has_grad = (grad != 0) | ((size == 0) & (has & HAS_GRAD != 0))
    known = has_grad & (tl.load(changing + count + index) >= 0)
    lacks = tl.where(has_grad, 0, OF_GRADIENT) | tl.where(known, 0, OF_DIRECTION)
    lacks = lacks | tl.where(known & (has & HAS_MOMENTUM != 0), 0, OF_MOMENTUM)
    lacks = lacks | tl.where(known & (has & HAS_VARIANCE != 0), 0, OF_VARIANCE)
    values = tl.where((lacks >> column) & 1 != 0, float("nan"), values)
    tl.store(sums + index * SUMS + column, values, mask=column < SUMS)


@triton.jit(do_not_specialize=["count"])
def gather(places, numbers, count, BLOCK: tl.constexpr):
    """Read the float32 numbers that are stored at the addresses `places`, into `numbers`."""
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < count
    at = tl.load(places + lane, mask=inside, other=0).to(tl.pointer_type(tl.float32))
    tl.store(numbers + lane, tl.load(at, mask=inside, other=0.0), mask=inside)
