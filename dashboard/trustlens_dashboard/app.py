"""The dashboard application: :func:`create_app` builds it, :func:`serve` runs it."""

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
"""Host names under which a browser on this machine reaches the dashboard."""

_INDEX: Final = """<!DOCTYPE html>
<html lang="en">
  <head>
    {%metas%}
    <title>{%title%}</title>
    <link rel="icon" type="image/svg+xml" href="<!--icon-->">
    {%css%}
    <style><!--colors--></style>
    <script>
      // Set the colour scheme before the first paint, so that the page does not flash:
      // the stored choice, or the system's preference.
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
    """Return a dashboard of the runs below ``root``.

    Parameters
    ----------
    root : Path
        A folder that contains runs, or one run. It may be empty or missing; runs are found when
        they appear.
    hosts : frozenset of str, optional
        Host names for which requests are answered; None for any. The check prevents DNS rebinding:
        a foreign site could point its own name at this machine and read the dashboard through the
        user's browser.

    Returns
    -------
    Dash
        The application; ``.server`` is its WSGI application.
    """
    # A snapshot is used for half a tick (see TICK_MS): all callbacks of one tick share it, and the
    # next tick searches the folder again.
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
        _restrict_hosts(app, hosts)
    app.config.external_scripts = [
        _serve_text(app, "canvas.js", canvas.script(), "text/javascript")
    ]
    app.config.external_stylesheets = [_serve_text(app, "canvas.css", canvas.style(), "text/css")]
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
    """Serve the dashboard until the process receives SIGINT (Ctrl+C).

    Parameters
    ----------
    root : Path
        A folder that contains runs, or one run.
    host : str
        The address to listen on. The default accepts connections from this machine only.
    port : int
        The port; 0 selects a free one.
    announce : callable
        Called once with the dashboard's URL when the server listens.

    Raises
    ------
    UsageError
        If the port is invalid or in use, or the address is not one of this machine.
    """
    listener = _listen(host, port)
    app = create_app(root, None if _is_wildcard(host) else LOCAL | {host})
    with listener:
        server = make_server(
            host,
            port,
            app.server,
            threaded=True,
            request_handler=_QuietHandler,
            fd=listener.fileno(),
        )
        name = f"[{host}]" if ":" in host else host
        announce(f"http://{name}:{listener.getsockname()[1]}/")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass
        finally:
            server.server_close()


class _QuietHandler(WSGIRequestHandler):
    """A request handler that logs errors only: each open page sends a request every 1.5 s."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Do nothing."""


def _restrict_hosts(app: Dash, hosts: frozenset[str]) -> None:
    # Werkzeug's TRUSTED_HOSTS does not support IPv6 addresses.
    def check() -> None:
        host = urlsplit(f"//{request.headers.get('Host', '')}").hostname
        if host not in hosts:
            abort(400, f"This dashboard does not accept requests for the host '{host}'.")

    app.server.before_request(check)


def _serve_text(app: Dash, name: str, text: str, kind: str) -> str:
    """Serve a text from memory and return the path of its URL.

    The path contains a digest of the text, so that browsers do not use an outdated cached copy.
    """

    def answer() -> Response:
        return Response(text, mimetype=kind, headers={"Cache-Control": "max-age=31536000"})

    app.server.add_url_rule(f"{app.config.routes_pathname_prefix}{name}", name, answer)
    digest = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
    return f"{app.get_relative_path(f'/{name}')}?m={digest}"


def _is_wildcard(host: str) -> bool:
    """Return whether ``host`` means all addresses of this machine.

    If so, the host names in requests cannot be restricted: the names of this machine are unknown.
    """
    return host in ("0.0.0.0", "::")  # noqa: S104


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise UsageError(f"{port} is not a valid port; choose one from 1 to 65535")
    if not host:
        raise UsageError("the host is empty; set it with --host, such as --host 127.0.0.1")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        wrong = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise UsageError(
            f"cannot listen on {host}, port {port} ({error.strerror or error}); "
            f"choose another with {wrong}"
        ) from None


def _colors() -> str:
    """Return a style sheet with the colours of both themes as CSS custom properties."""
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
