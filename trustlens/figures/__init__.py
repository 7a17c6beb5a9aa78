"""Figures of recorded runs, drawn with Plotly.

Each figure has a drawing function, such as :func:`curves`, and a function that returns the data of
the figure, such as :func:`curves_data`. The data functions do not need Plotly. Show a figure with
``figure.show(config=PLOTLY_CONFIG)``, which disables Plotly's upload button.
"""

from trustlens.figures._curves import curves, curves_data
from trustlens.figures._debias import debias, debias_data
from trustlens.figures._heatmap import heatmap, heatmap_data
from trustlens.figures._smoothing import smoothing, smoothing_data
from trustlens.figures.ridgelines.data import ridgeline_data
from trustlens.figures.ridgelines.figure import ridgeline
from trustlens.figures.theme import PLOTLY_CONFIG

__all__ = [
    "PLOTLY_CONFIG",
    "curves",
    "curves_data",
    "debias",
    "debias_data",
    "heatmap",
    "heatmap_data",
    "ridgeline",
    "ridgeline_data",
    "smoothing",
    "smoothing_data",
]
