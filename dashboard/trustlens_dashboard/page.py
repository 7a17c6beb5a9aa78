"""The declaration of a page; each folder of ``pages`` has one."""

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
        Its place in the navigation: lower numbers come first.
    path : str
        Its path in the address, such as "/layers".
    title : str
        Its name in the navigation and in the title of the browser's window.
    layout : callable
        Returns the page's components, without data.
    register : callable
        Registers the callbacks that fill them.
    uses_runs, uses_quantity : bool
        Whether the toolbar shows the two selected runs, and the selected quantity.
    """

    order: int
    path: str
    title: str
    layout: Callable[[], Any]
    register: Callable[[Dash, Library], None]
    uses_runs: bool = True
    uses_quantity: bool = False
