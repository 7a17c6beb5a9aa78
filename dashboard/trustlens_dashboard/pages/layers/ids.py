"""Component ids of the layers page."""

from __future__ import annotations

from typing import Final

RUN: Final = "layers-run"
HEATMAP: Final = "layers-heatmap"
GRID: Final = "layers-grid"
FINDINGS: Final = "layers-findings"
FINDINGS_BOX: Final = "layers-findings-box"
TABLE_TITLE: Final = "layers-table-title"
VERDICT: Final = "layers-verdict"
LAYER: Final = "layer"
LAYER_GRAPH: Final = "layer-graph"
