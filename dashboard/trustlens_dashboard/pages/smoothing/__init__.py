"""The page of moving averages: how Adam smooths, and why it corrects the start."""

from trustlens_dashboard.page import Page
from trustlens_dashboard.pages.smoothing import callbacks, layout

PAGE = Page(
    order=5,
    path="/smoothing",
    title="Debias & smoothing",
    layout=layout.layout,
    register=callbacks.register,
)
