"""Sums over a layer's elements, from which the recorded quantities are computed.

``reference`` defines the sums by plain float64 formulas. The backends compute them in one pass, and
their results must agree with those of ``reference``.
"""

from trustlens.kernels.sums import SUMS
from trustlens.recording.statistics.layer_step import LayerStep

__all__ = ["SUMS", "LayerStep"]
