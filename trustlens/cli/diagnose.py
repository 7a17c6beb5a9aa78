"""``trustlens diagnose``: rank the suspicious layers of a run."""

from __future__ import annotations

import argparse

import trustlens
from trustlens.cli.parser import Subparsers, add_command, add_run
from trustlens.cli.terminal import FOUND, OK, say


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "diagnose",
        run,
        "rank suspicious layers; status 1 if there are any",
        "trustlens diagnose runs/lamb",
    )
    add_run(parser)


def run(options: argparse.Namespace) -> int:
    """Print the findings; return 1 if there are any, else 0."""
    from trustlens.analysis.diagnose import verdict  # noqa: PLC0415

    diagnosed = trustlens.open_run(options.run_path)
    findings = diagnosed.diagnose()
    say(f"{diagnosed.name}: {verdict(findings, diagnosed)}")
    if findings.empty:
        return OK
    say(findings.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    return FOUND
