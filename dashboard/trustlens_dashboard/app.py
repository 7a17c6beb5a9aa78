"""The dashboard as an application: ``create_app`` makes it, ``serve`` runs it."""

from __future__ import annotations

import errno
import hashlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from dash import Dash
from flask import Response, abort, request
from werkzeug.serving import WSGIRequestHandler, make_server

from trustlens.errors import UsageError
from trustlens.figures.ridgelines import canvas
from trustlens.figures.theme import THEMES, Theme
from trustlens_dashboard.frame import callbacks
from trustlens_dashboard.frame.layout import TICK_MS, frame
from trustlens_dashboard.library import Library
from trustlens_dashboard.pages import all_pages

LOCAL: Final = frozenset({"127.0.0.1", "localhost", "::1"})
"""This machine's names for itself."""

_INDEX: Final = """<!DOCTYPE html>
<html lang="en">
  <head>
    {%metas%}
    <title>{%title%}</title>
    <link rel="icon" type="image/svg+xml" href="<!--icon-->">
    {%css%}
    <style><!--colors--></style>
    <script>
      // Before anything is drawn, so that no page flashes: as chosen last, else as the system is.
      (() => {
        const chosen = localStorage.getItem("mantine-color-scheme-value");
        const dark = matchMedia("(prefers-color-scheme: dark)").matches;
        const scheme = chosen === "light" || chosen === "dark" ? chosen : dark ? "dark" : "light";
        document.documentElement.dataset.mantineColorScheme = scheme;
      })();
    </script>
  </head>
  <body>
    {%app_entry%}
    <footer>
      {%config%}
      {%scripts%}
      {%renderer%}
    </footer>
  </body>
</html>"""


def create_app(root: Path, hosts: frozenset[str] | None = LOCAL) -> Dash:
    """Return the dashboard over the runs below ``root``, which may still be empty.

    Parameters
    ----------
    root : Path
        A folder that holds runs, or one run.
    hosts : frozenset of str, optional
        The names it answers to; None for any. Without it a foreign site could reach the dashboard
        through the user's browser, by having its own name point at this machine (DNS rebinding).

    Returns
    -------
    Dash
        The application; ``.server`` is its WSGI application.
    """
    # Callbacks of one tick share a snapshot; the next tick finds a new one.
    library = Library(root, max_age=TICK_MS / 2000)
    pages = all_pages()
    app = Dash(
        "trustlens_dashboard",
        title="trustlens",
        update_title="",
        assets_folder=str(Path(__file__).with_name("assets")),
        enable_mcp=False,
        serve_locally=True,
        add_log_handler=False,
    )
    if hosts is not None:
        _answer_only_to(app, hosts)
    app.config.external_scripts = [_serve(app, "canvas.js", canvas.script(), "text/javascript")]
    app.config.external_stylesheets = [_serve(app, "canvas.css", canvas.style(), "text/css")]
    icon = app.get_asset_url("icon.svg")
    app.index_string = _INDEX.replace("<!--icon-->", icon).replace("<!--colors-->", _colors())
    app.layout = frame(pages)
    app.validation_layout = [app.layout, *(page.layout() for page in pages)]
    callbacks.register(app, library, pages)
    for page in pages:
        page.register(app, library)
    return app


def serve(
    root: Path,
    host: str = "127.0.0.1",
    port: int = 8050,
    *,
    announce: Callable[[str], object] = lambda _address: None,
) -> None:
    """Serve the dashboard until it is interrupted.

    Parameters
    ----------
    root : Path
        A folder that holds runs, or one run.
    host : str
        The address to listen on; by default this machine only.
    port : int
        The port; 0 takes a free one.
    announce : callable
        Is given the dashboard's address as soon as it answers there.

    Raises
    ------
    UsageError
        The port is in use, or there is no such address.
    """
    listener = _listen(host, port)
    app = create_app(root, None if _everywhere(host) else LOCAL | {host})
    with listener:
        server = make_server(
            host, port, app.server, threaded=True, request_handler=_Quiet, fd=listener.fileno()
        )
        name = f"[{host}]" if ":" in host else host
        announce(f"http://{name}:{listener.getsockname()[1]}/")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass
        finally:
            server.server_close()


class _Quiet(WSGIRequestHandler):
    """Errors are logged, requests are not: a page asks every second or two."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing."""


def _answer_only_to(app: Dash, hosts: frozenset[str]) -> None:
    # Werkzeug's TRUSTED_HOSTS would do, if it knew addresses of IPv6.
    def check() -> None:
        host = urlsplit(f"//{request.headers.get('Host', '')}").hostname
        if host not in hosts:
            abort(400, f"This dashboard does not answer to the name '{host}'.")

    app.server.before_request(check)


def _serve(app: Dash, name: str, text: str, kind: str) -> str:
    """Serve a text that is not in the assets folder; return its path, which changes with it."""

    def answer() -> Response:
        return Response(text, mimetype=kind, headers={"Cache-Control": "max-age=31536000"})

    app.server.add_url_rule(f"{app.config.routes_pathname_prefix}{name}", name, answer)
    digest = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
    return f"{app.get_relative_path(f'/{name}')}?m={digest}"


def _everywhere(host: str) -> bool:
    """Whether the user opened the page to the network, where it has names we cannot know."""
    return host in ("0.0.0.0", "::")  # noqa: S104


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise UsageError(f"{port} is not a port; give one from 1 to 65535")
    if not host:
        raise UsageError("'' is not an address; give one with --host, such as 127.0.0.1")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        wrong = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise UsageError(
            f"cannot listen on {host}, port {port} ({error.strerror or error}); "
            f"give another with {wrong}"
        ) from None


def _colors() -> str:
    """Return the themes as custom properties of CSS."""
    light, dark = (_properties(THEMES[name]) for name in ("light", "dark"))
    return f":root{{{light}}}:root[data-mantine-color-scheme=dark]{{{dark}}}"


def _properties(theme: Theme) -> str:
    colors = {
        "paper": theme.background,
        "panel": theme.panel,
        "ink": theme.ink,
        "muted": theme.muted,
        "grid": theme.grid,
        "axis": theme.axis,
        "accent": theme.accent,
        "alert": theme.alert,
        **{f"run-{key}": color.line for key, color in theme.runs.items()},
    }
    return "".join(f"--tl-{name}:{color};" for name, color in colors.items())
