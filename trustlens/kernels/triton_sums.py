"""The recorded sums as constants of the Triton kernels, generated from their declaration.

The index of each sum's column has the sum's name in capitals, such as ``WEIGHT_SQUARES``.
"""

import triton.language as tl

from trustlens import element_bins
from trustlens.kernels import sums

globals().update({name.upper(): tl.constexpr(i) for i, name in enumerate(sums.SUMS)})

SUMS = tl.constexpr(len(sums.SUMS))
"""Number of columns."""

FIRST_COUNT = tl.constexpr(sums.FIRST_COUNT)
FIRST_MAXIMUM = tl.constexpr(sums.FIRST_MAXIMUM)

# Bit masks of the columns that are NaN without a gradient, and so on: bit i is column i.
OF_GRADIENT = tl.constexpr(sums.mask_of("gradient"))
OF_DIRECTION = tl.constexpr(sums.mask_of("direction"))
OF_MOMENTUM = tl.constexpr(sums.mask_of("momentum"))
OF_VARIANCE = tl.constexpr(sums.mask_of("variance"))

# Element buckets.
BUCKETS = tl.constexpr(element_bins.ELEMENT_BUCKETS)
BUCKET_SHIFT = tl.constexpr(element_bins.ELEMENT_SHIFT)
