"""Ridgelines on a 2D canvas, to be turned with the mouse: a script, its style and its data."""

from trustlens.figures.ridgelines.canvas.payload import payload
from trustlens.figures.ridgelines.canvas.sources import script, style

__all__ = ["payload", "script", "style"]
