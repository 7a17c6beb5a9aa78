"""Component ids of the runs page."""

from __future__ import annotations

from typing import Final

GRID: Final = "runs-grid"
BOX: Final = "runs-box"
EMPTY: Final = "runs-empty"
VERSION: Final = "runs-version"
CHOSEN: Final = "runs-chosen"
