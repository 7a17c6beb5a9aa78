"""The page of layers: all layers of a run, then one of them over time."""

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
