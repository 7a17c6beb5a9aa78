"""Format numbers, and insert Markdown tables into pages."""

from __future__ import annotations

import re
from typing import Final

MISSING: Final = "not measured"
FAILS: Final = "does not run"


def shown(value: float, unit: str) -> str:
    """Return a number with its unit, rounded to about three digits; 10 s and more in seconds."""
    if unit == "ms" and value >= 1e4:
        value, unit = value / 1e3, "s"
    digits = next((n for n, bound in ((2, 10), (1, 100)) if abs(value) < bound), 0)
    text = f"{value:,.{digits}f}".replace("-", "−")
    return f"{text.removeprefix('−') if float(f'{value:.{digits}f}') == 0 else text} {unit}"


def replaced(page: str, name: str, block: str) -> str:
    """Return a page with a block between its markers ``<!-- name -->`` and ``<!-- /name -->``.

    Raises
    ------
    ValueError
        If the page does not have exactly one pair of the markers.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise ValueError(f"got a page without {begin} … {end}; put them where the tables belong")
    return pattern.sub(lambda _: f"{begin}\n\n{block}\n\n{end}", page)
