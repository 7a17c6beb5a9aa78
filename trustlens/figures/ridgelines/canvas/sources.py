"""The script and the style sheet of the canvas as text, to serve or to embed in a page."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_SCRIPTS: Final = ("camera", "surface", "box", "input", "ridgelines")
"""The scripts in the order in which they must run: each uses earlier ones."""


def script() -> str:
    """Return the JavaScript that defines ``window.trustlens.ridgelines``.

    The script has no dependencies and makes no requests. ``ridgelines.show(element, payload,
    step)`` draws the result of :func:`~trustlens.figures.ridgelines.canvas.payload` in ``element``.
    """
    return "".join(_read(f"{name}.js") for name in _SCRIPTS)


def style() -> str:
    """Return the style sheet for the script."""
    return _read("ridgelines.css")


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
