"""The command ``trustlens``: one module per command.

The exit status is 0 if the command worked, 1 if it worked and found something wrong, and 2 for
incorrect use. With status 2, one line on stderr says what was received and what to do.

To add a command, write a module with ``add_parser(commands)``, which adds the command's parser,
and ``run(options) -> int``, which returns the exit status, and add the module to ``_COMMANDS``.
A command's module imports pandas, pyarrow and other slow packages inside ``run``, so that
``trustlens --help`` is fast.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

import trustlens
from trustlens.cli import dashboard, demo, diagnose, doctor, export, repair, show
from trustlens.cli import list as list_runs
from trustlens.cli.parser import Parser
from trustlens.cli.terminal import OK, describe, print_error
from trustlens.errors import TrustlensError

_COMMANDS: Final = (demo, dashboard, list_runs, show, diagnose, repair, export, doctor)
"""The commands, in the order of ``trustlens --help``."""

_CTRL_C: Final = 130  # the status that shells use for a process ended by SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        status = options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _CTRL_C
    except BrokenPipeError:  # the reader closed our output, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (TrustlensError, OSError) as error:
        return print_error(describe(error))
    return status


def _parser() -> Parser:
    parser = Parser(
        prog="trustlens",
        description="See what your optimizer does to each layer.",
        epilog="example: trustlens dashboard runs/",
    )
    parser.add_argument("--version", action="version", version=f"trustlens {trustlens.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(commands)
    return parser
