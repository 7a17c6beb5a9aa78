"""The numbers that a layer's step takes: made on the GPU, where some of the options may lie."""

# pyright: basic, reportMissingImports=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# ruff: noqa: ANN001, ANN201, N803, PLR0917
# Triton is a language of its own: types are dtypes there, and capitals stand for constants.

import triton
import triton.language as tl

OPTIONS = tl.constexpr(6)
"""Numbers at the start of `given`: rate, β₁, β₂, ε, λ, divisor; step counts come behind them."""

# What is made, by its column.
RATE = tl.constexpr(0)
BETA1 = tl.constexpr(1)
SHARE1 = tl.constexpr(2)  # 1 − β₁
BETA2 = tl.constexpr(3)
SHARE2 = tl.constexpr(4)
EPSILON = tl.constexpr(5)
DECAY = tl.constexpr(6)
APPLIED = tl.constexpr(7)  # λ in what LAMB applies: 0 if the decay is applied first
KEPT = tl.constexpr(8)  # what is then left of w
ABOVE = tl.constexpr(9)  # what of it is in the norm above the ratio's line
OF_SUM = tl.constexpr(10)  # 1 where LARS has no λw in the norm below the line
DIVISOR = tl.constexpr(11)
MEAN = tl.constexpr(12)  # 1 − β₁ᵗ where the direction is debiased
ROOT_SHARE = tl.constexpr(13)  # √v̂ / √v
RATE_FACTOR = tl.constexpr(14)
NUMBERS = tl.constexpr(15)

_NO_DEBIAS = tl.constexpr(0)  # as `DEBIAS` of fused_cpu.py
_IN_DIRECTION = tl.constexpr(1)
_IN_RATE = tl.constexpr(2)
_FIRST_IN_RATE = tl.constexpr(3)


@triton.jit(do_not_specialize=["count"])
def make_numbers(
    given, numbers, count, DEBIAS: tl.constexpr, DECAYS_INSIDE: tl.constexpr,
    RATIO_BEFORE_DECAY: tl.constexpr, RATIO_OF_SUM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Make the numbers of layers, float32, from the options and step counts, float64."""
    layer = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = layer < count
    one, none = tl.full([BLOCK], 1.0, tl.float64), tl.zeros([BLOCK], tl.float64)
    rate, beta1, beta2 = one * tl.load(given), one * tl.load(given + 1), one * tl.load(given + 2)
    epsilon, decay = one * tl.load(given + 3), one * tl.load(given + 4)
    divisor = one * tl.load(given + 5)
    mean, root_share, factor = one, one, one
    if DEBIAS != _NO_DEBIAS:
        t = tl.load(given + OPTIONS + layer, mask=inside, other=1.0)
        mean = 1.0 - tl.exp2(t * tl.log2(beta1))
        root_share = 1.0 / tl.sqrt(1.0 - tl.exp2(t * tl.log2(beta2)))
    if DEBIAS == _IN_RATE:
        factor = 1.0 / (mean * root_share)
    if DEBIAS == _FIRST_IN_RATE:
        factor = 1.0 / mean
    if DEBIAS != _IN_DIRECTION:
        mean, root_share = one, one
    applied, kept = (decay, one) if DECAYS_INSIDE else (none, 1.0 - rate * decay)
    above = one if RATIO_BEFORE_DECAY else kept
    made = (
        rate, beta1, 1.0 - beta1, beta2, 1.0 - beta2, epsilon, decay, applied, kept, above,
        one if RATIO_OF_SUM else none, divisor, mean, root_share, factor,
    )  # fmt: skip
    for column in tl.static_range(NUMBERS):
        tl.store(numbers + layer * NUMBERS + column, made[column], mask=inside)


@triton.jit
def numbers_of(row):
    """Return a layer's numbers, to be read by their columns."""
    return (
        tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3), tl.load(row + 4),
        tl.load(row + 5), tl.load(row + 6), tl.load(row + 7), tl.load(row + 8), tl.load(row + 9),
        tl.load(row + 10), tl.load(row + 11), tl.load(row + 12), tl.load(row + 13),
        tl.load(row + 14),
    )  # fmt: skip
