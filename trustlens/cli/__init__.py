"""The command ``trustlens``: one module a command.

Exit status: 0, 1 (something wrong was found) or 2 (bad use: one line on stderr that says what was
received and what to do).

To add a command, write a module with ``add_parser(commands)``, which adds the command's parser,
and ``run(options) -> int``, which returns the exit status, and add the module to ``_COMMANDS``.
A command's module imports pandas, pyarrow and the like inside ``run``, so that
``trustlens --help`` is quick.
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
from trustlens.cli.terminal import OK, describe, refuse
from trustlens.errors import TrustlensError

_COMMANDS: Final = (demo, dashboard, list_runs, show, diagnose, repair, export, doctor)
"""The commands, in the order of ``trustlens --help``."""

_CTRL_C: Final = 130  # what shells expect of a process that SIGINT ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        status = options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _CTRL_C
    except BrokenPipeError:  # the reader of our output has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (TrustlensError, OSError) as error:
        return refuse(describe(error))
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
