"""The ridgelines page: the distribution of a quantity over the layers, for two runs."""

from trustlens_dashboard.page import Page
from trustlens_dashboard.pages.ridgelines import callbacks, layout

PAGE = Page(
    order=2,
    path="/ridgelines",
    title="Ridgelines",
    layout=layout.layout,
    register=callbacks.register,
    uses_quantity=True,
)
