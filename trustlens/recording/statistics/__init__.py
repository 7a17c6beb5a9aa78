"""Sums over a layer's elements, in one pass: every recorded number is computed from them.

``reference`` is the definition, in plain float64 formulas; the backends must agree with it.
"""

from trustlens.kernels.sums import SUMS
from trustlens.recording.statistics.layer_step import LayerStep

__all__ = ["SUMS", "LayerStep"]
