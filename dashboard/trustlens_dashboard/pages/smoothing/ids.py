"""Component ids of the debias and smoothing page."""

from __future__ import annotations

from typing import Final

BETAS: Final = "smoothing-betas"
SERIES: Final = "smoothing-series"
GRAPH: Final = "smoothing-graph"
DEBIASED: Final = "smoothing-debiased"
DEBIAS_GRAPH: Final = "debias-graph"
DEBIAS_RECORDED: Final = "debias-recorded"
