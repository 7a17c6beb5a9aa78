"""The page of training curves: what was logged over time, in several runs."""

from trustlens_dashboard.page import Page
from trustlens_dashboard.pages.training import callbacks, layout

PAGE = Page(
    order=3,
    path="/training",
    title="Training",
    layout=layout.layout,
    register=callbacks.register,
)
