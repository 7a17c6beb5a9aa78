"""The class with which each folder of ``pages`` declares its page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dash import Dash

from trustlens_dashboard.library import Library


@dataclass(frozen=True, slots=True)
class Page:
    """A page, declared as ``PAGE`` in the ``__init__.py`` of its folder.

    Attributes
    ----------
    order : int
        Position in the navigation: lower numbers come first.
    path : str
        Path of the URL, such as "/layers".
    title : str
        Name in the navigation and in the title of the browser window.
    layout : callable
        A function that returns the page's components, without data.
    register : callable
        A function that registers the callbacks, which fill the components with data.
    uses_runs, uses_quantity : bool
        ``uses_runs`` says whether the toolbar with the selectors of the two runs is shown, and
        ``uses_quantity`` whether it also has the selector of the quantity.
    """

    order: int
    path: str
    title: str
    layout: Callable[[], Any]
    register: Callable[[Dash, Library], None]
    uses_runs: bool = True
    uses_quantity: bool = False
