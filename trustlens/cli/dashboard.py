"""``trustlens dashboard``: show runs in the browser."""

from __future__ import annotations

import argparse
import importlib
import sys
import webbrowser
from pathlib import Path
from threading import Thread

from trustlens.cli.parser import Subparsers, add_command, add_runs
from trustlens.cli.terminal import OK, say
from trustlens.errors import MissingDependencyError, UsageError


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        commands, "dashboard", run, "show runs in the browser", "trustlens dashboard runs/"
    )
    add_runs(parser)
    add_server_options(parser)


def run(options: argparse.Namespace) -> int:
    """Serve the dashboard until Ctrl+C; return the exit status."""
    from trustlens.analysis.discovery import local_folder  # noqa: PLC0415

    root = local_folder(options.runs)
    if not root.is_dir():
        reason = "is not a directory" if root.exists() else "does not exist"
        raise UsageError(f"'{root}' {reason}; give a run, or a folder of runs")
    return serve(root, options)


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that :func:`serve` uses: ``--host``, ``--port`` and ``--no-browser``."""
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve on (default: 127.0.0.1)"
    )
    parser.add_argument("--port", type=_port, default=8050, help="port to serve on (default: 8050)")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")


def serve(root: Path, options: argparse.Namespace) -> int:
    """Serve the runs below a folder until Ctrl+C; return the exit status."""
    try:
        # Imported by name: the dashboard is a separate package that depends on this one.
        app = importlib.import_module("trustlens_dashboard.app")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("trustlens", "trustlens_dashboard"):
            raise
        raise MissingDependencyError("the dashboard", error.name or "dash", "dashboard") from None

    def announce(address: str) -> None:
        say(f"trustlens: {root} at {address} (press Ctrl+C to quit)")
        sys.stdout.flush()
        if not options.no_browser:
            # In a thread: some browsers block the caller until they are closed.
            Thread(target=webbrowser.open, args=[address], daemon=True).start()

    app.serve(root, host=options.host, port=options.port, announce=announce)
    return OK


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is not a port; give a number from 1 to 65535")
    return int(text)
