"""The layers page: all layers of a run as a heatmap and a table, and one layer over time."""

from trustlens_dashboard.page import Page
from trustlens_dashboard.pages.layers import callbacks, layout

PAGE = Page(
    order=4,
    path="/layers",
    title="Layers",
    layout=layout.layout,
    register=callbacks.register,
    uses_quantity=True,
)
