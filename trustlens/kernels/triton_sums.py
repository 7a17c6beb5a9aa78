"""Constants of the Triton kernels, generated from the declaration of the sums in ``sums.py``.

For each sum, a constant with the sum's name in capitals (``WEIGHT_SQUARES``) is the index of its
column.
"""

import triton.language as tl

from trustlens import element_bins
from trustlens.kernels import sums

globals().update({name.upper(): tl.constexpr(i) for i, name in enumerate(sums.SUMS)})

SUMS = tl.constexpr(len(sums.SUMS))
"""Number of sums, and so of columns."""

FIRST_COUNT = tl.constexpr(sums.FIRST_COUNT)
FIRST_MAXIMUM = tl.constexpr(sums.FIRST_MAXIMUM)

# Bit masks of columns: bit i is column i. The sums in `OF_GRADIENT` are NaN without a gradient; the
# other masks correspond to a missing direction, momentum and variance.
OF_GRADIENT = tl.constexpr(sums.mask_of("gradient"))
OF_DIRECTION = tl.constexpr(sums.mask_of("direction"))
OF_MOMENTUM = tl.constexpr(sums.mask_of("momentum"))
OF_VARIANCE = tl.constexpr(sums.mask_of("variance"))

# The number of buckets of an element histogram, and the shift from a float32's bits to its bucket.
BUCKETS = tl.constexpr(element_bins.ELEMENT_BUCKETS)
BUCKET_SHIFT = tl.constexpr(element_bins.ELEMENT_SHIFT)
