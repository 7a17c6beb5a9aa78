"""Component ids of the frame around every page."""

from __future__ import annotations

from typing import Final

URL: Final = "url"
PAGE: Final = "page"
NAVIGATION: Final = "navigation"
TOOLBAR: Final = "toolbar"
RUN_A: Final = "run-a"
RUN_B: Final = "run-b"
DOT_A: Final = "run-a-dot"
DOT_B: Final = "run-b-dot"
QUANTITY: Final = "quantity"
QUANTITY_BOX: Final = "quantity-box"
SHORTCUT: Final = "quantity-shortcut"
LIVE: Final = "live"
THEME_TOGGLE: Final = "theme-toggle"
THEME: Final = "theme"
TICK: Final = "tick"
LISTING: Final = "listing"
CURSOR: Final = "cursor"
TITLES: Final = "titles"
