"""Interactive ridgelines on a 2D canvas: the script, its style sheet and its data."""

from trustlens.figures.ridgelines.canvas.payload import payload
from trustlens.figures.ridgelines.canvas.sources import script, style

__all__ = ["payload", "script", "style"]
