"""Parsers of the command line, one per command."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

from trustlens.cli.terminal import BAD_USE

Subparsers: TypeAlias = Any
"""Return type of ``ArgumentParser.add_subparsers``, which has no public name in argparse."""


class _HelpFormatter(argparse.HelpFormatter):
    """Formats help with a wider first column.

    argparse does not count the indentation of commands when it computes the column's width.
    """

    def format_help(self) -> str:
        self._action_max_length += self._indent_increment
        return super().format_help()


class Parser(argparse.ArgumentParser):
    """A parser that reports errors in one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_HelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Print the error and the command for help, and exit with status 2."""
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
        The subparsers of the parent parser.
    name : str
        The name of the command, as users type it.
    run : callable, optional
        Runs the command with its parsed options and returns the exit status; None for a command
        with subcommands.
    summary : str
        One sentence on what the command does, lower case, without a full stop.
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
