"""The runs page: the runs below the folder, and the selection of two to compare."""

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
