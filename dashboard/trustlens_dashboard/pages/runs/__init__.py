"""The page of all runs: what is in the folder, and which two to compare."""

from trustlens_dashboard.page import Page
from trustlens_dashboard.pages.runs import callbacks, layout

PAGE = Page(
    order=1,
    path="/",
    title="Runs",
    layout=layout.layout,
    register=callbacks.register,
    uses_runs=False,
)
