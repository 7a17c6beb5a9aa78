"""``trustlens demo``: show the sample runs in the browser."""

from __future__ import annotations

import argparse
from pathlib import Path

import trustlens
from trustlens.cli.dashboard import add_server_options, serve
from trustlens.cli.parser import Subparsers, add_command
from trustlens.errors import UsageError


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        commands, "demo", run, "show recorded sample runs in the browser", "trustlens demo"
    )
    add_server_options(parser)


def run(options: argparse.Namespace) -> int:
    """Serve the sample runs until Ctrl+C; return the exit status."""
    return serve(recorded_runs(), options)


def recorded_runs() -> Path:
    """Return the folder of the sample runs, in the installed package or the repository.

    Raises
    ------
    UsageError
        If neither has sample runs.
    """
    package = Path(trustlens.__file__).parent
    for folder in (package / "recorded", package.parent / "sample_runs" / "recorded"):
        if folder.is_dir():
            return folder
    raise UsageError("this installation has no sample runs; install trustlens-optim from its wheel")
