"""The training page: logged metrics of several runs over time."""

from trustlens_dashboard.page import Page
from trustlens_dashboard.pages.training import callbacks, layout

PAGE = Page(
    order=3,
    path="/training",
    title="Training",
    layout=layout.layout,
    register=callbacks.register,
)
