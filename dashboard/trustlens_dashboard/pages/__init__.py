"""The pages, one folder each. Every folder of this package is a page; there is no list."""

from __future__ import annotations

import importlib
import pkgutil

from trustlens_dashboard.page import Page


def all_pages() -> list[Page]:
    """Return the ``PAGE`` of each folder in this package, in the order of the navigation."""
    folders = [module.name for module in pkgutil.iter_modules(__path__) if module.ispkg]
    found = [importlib.import_module(f"{__name__}.{name}").PAGE for name in folders]
    return sorted(found, key=lambda page: page.order)
