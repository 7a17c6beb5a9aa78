"""Triton kernel that computes the coefficients of each layer's step.

It computes them from the options of the parameter group and the step counts of the layers. It runs
on the GPU, since options such as the learning rate may be tensors there.
"""

# pyright: basic, reportMissingImports=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# ruff: noqa: ANN001, ANN201, N803, PLR0917
# In Triton, annotations are not Python types, and names of constexpr parameters are upper case.

import triton
import triton.language as tl

OPTIONS = tl.constexpr(6)
"""Number of options at the start of the tensor `given`: η, β₁, β₂, ε, λ, divisor.

After them, `given` contains the step count of each layer.
"""

# Columns of `numbers`, the table of coefficients.
RATE = tl.constexpr(0)
BETA1 = tl.constexpr(1)
SHARE1 = tl.constexpr(2)  # 1 − β₁
BETA2 = tl.constexpr(3)
SHARE2 = tl.constexpr(4)  # 1 − β₂
EPSILON = tl.constexpr(5)
DECAY = tl.constexpr(6)
DECAY_IN_UPDATE = tl.constexpr(7)  # λ in LAMB's update; 0 if w is decayed before the step
KEPT = tl.constexpr(8)  # factor of w in the step: 1 − ηλ if w is decayed before the step, else 1
NORM_FACTOR = tl.constexpr(9)  # factor of ‖w‖ in the ratio's numerator
OF_SUM = tl.constexpr(10)  # 1 if the ratio of LARS uses ‖g‖, 0 if it uses ‖g + λw‖
DIVISOR = tl.constexpr(11)  # the gradients are divided by this
MEAN = tl.constexpr(12)  # 1 − β₁ᵗ if the direction is debiased, else 1
ROOT_FACTOR = tl.constexpr(13)  # √v̂ / √v if the direction is debiased, else 1
RATE_FACTOR = tl.constexpr(14)  # debias factor of η if the direction is not debiased, else 1
NUMBERS = tl.constexpr(15)  # number of columns

_NO_DEBIAS = tl.constexpr(0)  # the values of `DEBIAS` in fused_cpu.py
_IN_DIRECTION = tl.constexpr(1)
_IN_RATE = tl.constexpr(2)
_FIRST_IN_RATE = tl.constexpr(3)


@triton.jit(do_not_specialize=["count"])
def make_numbers(
    given, numbers, count, DEBIAS: tl.constexpr, DECAYS_INSIDE: tl.constexpr,
    RATIO_BEFORE_DECAY: tl.constexpr, RATIO_OF_SUM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute the float32 coefficients of each layer, one row of `numbers` per layer.

    `given` contains the options and the step counts in float64.
    """
    layer = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = layer < count
    one, zero = tl.full([BLOCK], 1.0, tl.float64), tl.zeros([BLOCK], tl.float64)
    rate, beta1, beta2 = one * tl.load(given), one * tl.load(given + 1), one * tl.load(given + 2)
    epsilon, decay = one * tl.load(given + 3), one * tl.load(given + 4)
    divisor = one * tl.load(given + 5)
    mean, root_factor, factor = one, one, one
    if DEBIAS != _NO_DEBIAS:
        t = tl.load(given + OPTIONS + layer, mask=inside, other=1.0)
        mean = 1.0 - tl.exp2(t * tl.log2(beta1))
        root_factor = 1.0 / tl.sqrt(1.0 - tl.exp2(t * tl.log2(beta2)))
    if DEBIAS == _IN_RATE:
        factor = 1.0 / (mean * root_factor)
    if DEBIAS == _FIRST_IN_RATE:
        factor = 1.0 / mean
    if DEBIAS != _IN_DIRECTION:
        mean, root_factor = one, one
    in_update, kept = (decay, one) if DECAYS_INSIDE else (zero, 1.0 - rate * decay)
    norm_factor = one if RATIO_BEFORE_DECAY else kept
    columns = (
        rate, beta1, 1.0 - beta1, beta2, 1.0 - beta2, epsilon, decay, in_update, kept, norm_factor,
        one if RATIO_OF_SUM else zero, divisor, mean, root_factor, factor,
    )  # fmt: skip
    for column in tl.static_range(NUMBERS):
        tl.store(numbers + layer * NUMBERS + column, columns[column], mask=inside)


@triton.jit
def numbers_of(row):
    """Return a layer's coefficients as a tuple in the order of the columns."""
    return (
        tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3), tl.load(row + 4),
        tl.load(row + 5), tl.load(row + 6), tl.load(row + 7), tl.load(row + 8), tl.load(row + 9),
        tl.load(row + 10), tl.load(row + 11), tl.load(row + 12), tl.load(row + 13),
        tl.load(row + 14),
    )  # fmt: skip
