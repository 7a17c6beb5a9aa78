"""Component ids of the ridgelines page."""

from __future__ import annotations

from typing import Final

RIDGELINES: Final = "ridgelines"
DATA: Final = "ridgelines-data"
SCALE: Final = "ridgelines-scale"
VIEW: Final = "ridgelines-view"
FORMULA: Final = "ridgelines-formula"
MESSAGE: Final = "ridgelines-message"
STEP_SLIDER: Final = "step-slider"
STEP: Final = "step"
STEP_SUMMARY: Final = "step-summary"
STEP_GRID: Final = "step-grid"
