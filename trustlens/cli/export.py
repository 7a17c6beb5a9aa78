"""``trustlens export``: write a run for another tool."""

from __future__ import annotations

import argparse

import trustlens
from trustlens.cli.parser import Subparsers, add_command, add_run
from trustlens.cli.terminal import OK, say


def add_parser(commands: Subparsers) -> None:
    """Add the command, with one subcommand per format."""
    parser = add_command(
        commands,
        "export",
        None,
        "write a run for another tool",
        "trustlens export tensorboard runs/lamb tb/lamb",
    )
    formats = parser.add_subparsers(title="formats", required=True, metavar="FORMAT")
    tensorboard = add_command(
        formats,
        "tensorboard",
        run_tensorboard,
        "write TensorBoard event files",
        "trustlens export tensorboard runs/lamb tb/lamb",
    )
    add_run(tensorboard)
    tensorboard.add_argument(
        "logdir", metavar="LOGDIR", help="folder without event files, to write them to"
    )


def run_tensorboard(options: argparse.Namespace) -> int:
    """Write the run as TensorBoard events; return 0."""
    exported = trustlens.open_run(options.run_path)
    trustlens.export.to_tensorboard(exported, options.logdir, progress=True)
    say(f"{exported.name}: view it with: tensorboard --logdir '{options.logdir}'")
    return OK
