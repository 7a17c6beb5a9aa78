"""Figures of recorded runs, drawn with Plotly.

Each has a data function, which needs no Plotly, and a drawing function of the same name without
``_data``. Show a figure with ``figure.show(config=PLOTLY_CONFIG)``: nothing then leaves the machine.
"""

from trustlens.figures.ridgeline import RidgelineData, ridgeline, ridgeline_data
from trustlens.figures.theme import PLOTLY_CONFIG

__all__ = [
    "PLOTLY_CONFIG",
    "RidgelineData",
    "ridgeline",
    "ridgeline_data",
]
