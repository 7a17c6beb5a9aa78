"""Component ids of the training page."""

from __future__ import annotations

from typing import Final

RUNS: Final = "training-runs"
NAMES: Final = "training-names"
GRAPH: Final = "training-graph"
GRID: Final = "training-grid"
SCALE: Final = "training-scale"
