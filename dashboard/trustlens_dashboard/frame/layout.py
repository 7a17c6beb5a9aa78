"""Layout of the frame: header, navigation, toolbar, and data stored in the browser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

import dash_mantine_components as dmc
from dash import dcc, html

from trustlens.figures.theme import FONT, THEMES, mix
from trustlens_dashboard.components.graph import aria
from trustlens_dashboard.frame import ids
from trustlens_dashboard.frame.navigation import links, titles
from trustlens_dashboard.frame.toolbar import toolbar
from trustlens_dashboard.page import Page

TICK_MS: Final = 1500
"""Milliseconds between two ticks. At each tick the browser asks the server for changes."""


def frame(pages: Sequence[Page]) -> dmc.MantineProvider:
    """Return the layout of the application, with an empty container for the page."""
    return dmc.MantineProvider(
        [
            dcc.Location(id=ids.URL, refresh="callback-nav"),
            dcc.Interval(id=ids.TICK, interval=TICK_MS),
            dcc.Store(id=ids.LISTING),
            dcc.Store(id=ids.CURSOR),
            dcc.Store(id=ids.THEME),
            dcc.Store(id=ids.TITLES, data=titles(pages)),
            dmc.AppShell(
                [
                    dmc.AppShellHeader(_header(pages)),
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
    """Return the theme's colours as Mantine palettes: ten shades each, from light to dark."""
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


def _header(pages: Sequence[Page]) -> dmc.Group:
    return dmc.Group(
        [
            dmc.Anchor(
                [html.Span(className="brand-mark", **aria(hidden="true")), "trustlens"],
                href="/",
                className="brand",
                underline="never",
            ),
            html.Nav(
                links(pages, None),
                id=ids.NAVIGATION,
                className="navigation",
                **aria(label="Pages"),
            ),
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
