"""How the command line is parsed: one parser for each command."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

from trustlens.cli.terminal import BAD_USE

Subparsers: TypeAlias = Any
"""What ``ArgumentParser.add_subparsers`` returns; argparse has no public name for it."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print what was wrong and where help is, and exit with status 2."""
        self.exit(BAD_USE, f"{self.prog}: {message}; see '{self.prog} --help'\n")


def add_command(
    commands: Subparsers,
    name: str,
    run: Callable[[argparse.Namespace], int] | None,
    summary: str,
    example: str,
) -> argparse.ArgumentParser:
    """Add a command and return its parser.

    Parameters
    ----------
    commands : subparsers
        Where to add it.
    name : str
        What users type.
    run : callable, optional
        Runs the command with its options and returns the exit status; None for a command that has
        commands of its own.
    summary : str
        What the command does, without a full stop.
    example : str
        A complete command line, shown at the end of ``--help``.
    """
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example: {example}",
    )
    if run is not None:
        parser.set_defaults(run=run)
    return parser


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the argument RUN, stored as ``run_path``."""
    parser.add_argument("run_path", metavar="RUN", help="directory or address of a run")


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Add the argument RUNS, stored as ``runs``."""
    parser.add_argument("runs", metavar="RUNS", help="a run, or a folder of runs")
