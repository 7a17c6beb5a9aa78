"""The frame around every page: navigation, the two runs, the quantity, the theme."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

import dash_mantine_components as dmc
from dash import dcc, html

from trustlens.figures.theme import FONT, THEMES, mix
from trustlens.schema import QUANTITIES
from trustlens_dashboard import ids
from trustlens_dashboard.components.graph import aria

TICK_MS: Final = 1500
"""How often the page asks whether there is something new."""

SHORTCUTS: Final = {"trust_ratio": "r", "weight_norm": "r₁", "direction_norm": "r₂"}
"""The article's three quantities."""


def frame(links: Sequence[Any]) -> dmc.MantineProvider:
    """Return the whole page but for what stands in its middle; ``links`` lead to the pages."""
    return dmc.MantineProvider(
        [
            dcc.Location(id=ids.URL, refresh="callback-nav"),
            dcc.Interval(id=ids.TICK, interval=TICK_MS),
            dcc.Store(id=ids.LISTING),
            dcc.Store(id=ids.CURSOR),
            dcc.Store(id=ids.THEME),
            dmc.AppShell(
                [
                    dmc.AppShellHeader(_header(links)),
                    dmc.AppShellMain(
                        dmc.Container(
                            [toolbar(), html.Div(id=ids.PAGE)], size=1560, px="lg", py="md"
                        )
                    ),
                ],
                header={"height": 56},
            ),
        ],
        defaultColorScheme="auto",
        theme=cast(
            "Any",
            {
                "fontFamily": FONT,
                "colors": _palette(),
                "primaryColor": "accent",
                "primaryShade": {"light": 7, "dark": 5},
                "defaultRadius": "md",
                "headings": {"fontFamily": FONT, "fontWeight": "650"},
                "cursorType": "pointer",
                "respectReducedMotion": True,
            },
        ),
    )


def _palette() -> dict[str, list[str]]:
    """Return our colours as Mantine wants them: ten shades from light to dark."""
    light, dark = THEMES["light"], THEMES["dark"]
    accents = [mix("#ffffff", dark.accent, share) for share in (0.1, 0.25, 0.45, 0.65, 0.85, 1)]
    greys = [dark.ink, mix(dark.ink, dark.muted, 0.5), dark.muted, mix(dark.muted, dark.axis, 0.6)]
    return {
        "accent": [
            *accents,
            mix(dark.accent, light.accent, 0.5),
            light.accent,
            mix(light.accent, light.ink, 0.25),
            mix(light.accent, light.ink, 0.5),
        ],
        "dark": [*greys, dark.axis, dark.grid, dark.panel, dark.background, dark.panel, "#000000"],
    }


def _header(links: Sequence[Any]) -> dmc.Group:
    return dmc.Group(
        [
            dmc.Anchor(
                [html.Span(className="brand-mark", **aria(hidden="true")), "trustlens"],
                href="/",
                className="brand",
                underline="never",
            ),
            html.Nav(list(links), id=ids.NAVIGATION, className="navigation", **aria(label="Pages")),
            html.Div(id=ids.LIVE, className="live"),
            dmc.ColorSchemeToggle(
                id=ids.THEME_TOGGLE,
                lightIcon="☀",
                darkIcon="☾",
                variant="default",
                size="lg",
                **aria(label="Light or dark"),
            ),
        ],
        className="header",
        wrap="nowrap",
        gap="lg",
        px="lg",
        h="100%",
    )


def toolbar() -> html.Div:
    """Return the row that says what is looked at: run A, run B, the quantity."""
    return html.Div(
        [
            _run_select(ids.RUN_A, ids.DOT_A, "Run A", clearable=False),
            _run_select(ids.RUN_B, ids.DOT_B, "Run B", clearable=True),
            html.Div(
                [
                    dmc.Select(
                        id=ids.QUANTITY,
                        label="Quantity",
                        data=[
                            {"value": name, "label": f"{q.title} · {q.symbol}"}
                            for name, q in QUANTITIES.items()
                        ],
                        searchable=True,
                        allowDeselect=False,
                        maxDropdownHeight=420,
                        w=270,
                    ),
                    dmc.SegmentedControl(
                        id=ids.SHORTCUT,
                        data=[{"value": name, "label": sign} for name, sign in SHORTCUTS.items()],
                        attributes={"root": aria(label="The article's three quantities")},
                    ),
                ],
                id=ids.QUANTITY_BOX,
                className="quantity-box",
            ),
        ],
        id=ids.TOOLBAR,
        className="toolbar",
    )


def _run_select(select_id: str, dot_id: str, label: str, *, clearable: bool) -> dmc.Select:
    return dmc.Select(
        id=select_id,
        label=label,
        placeholder="none",
        searchable=True,
        clearable=clearable,
        allowDeselect=clearable,
        leftSection=html.Span(id=dot_id, className="dot"),
        nothingFoundMessage="No such run",
        maxDropdownHeight=420,
        w=300,
    )
