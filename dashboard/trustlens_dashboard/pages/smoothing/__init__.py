"""The debias and smoothing page: Adam's moving averages and their correction."""

from trustlens_dashboard.page import Page
from trustlens_dashboard.pages.smoothing import callbacks, layout

PAGE = Page(
    order=5,
    path="/smoothing",
    title="Debias & smoothing",
    layout=layout.layout,
    register=callbacks.register,
)
