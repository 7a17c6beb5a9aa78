"""``trustlens list``: list runs, each with its verdict (the diagnosis in one line)."""

from __future__ import annotations

import argparse
from typing import Any

import trustlens
from trustlens.cli.parser import Subparsers, add_command, add_runs
from trustlens.cli.terminal import FOUND, OK, describe, say
from trustlens.errors import TrustlensError

_COLUMNS = ("run", "optimizer", "layers", "steps", "status", "verdict")


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        commands, "list", run, "list runs with their verdict", "trustlens list runs/"
    )
    add_runs(parser)


def run(options: argparse.Namespace) -> int:
    """Print one row per run; return 1 if a run cannot be read, else 0."""
    import pandas as pd  # noqa: PLC0415

    from trustlens.analysis.diagnose import verdict  # noqa: PLC0415
    from trustlens.analysis.discovery import local_folder  # noqa: PLC0415

    root = local_folder(options.runs)
    status, rows = OK, list[tuple[Any, ...]]()
    for path in trustlens.find_runs(root):
        name = str(path.relative_to(root)) if path != root else path.resolve().name
        try:
            opened = trustlens.Run(path)
            layers, found = len(opened.layer_names), verdict(opened.diagnose(), opened)
            rows.append((name, opened.family, layers, opened.last_step, opened.status, found))
        except (TrustlensError, OSError) as error:
            status = FOUND
            rows.append((name, "–", "–", "–", "–", f"cannot be read: {describe(error)}"))
    if not rows:
        say(f"no runs in '{root}' yet; trustlens.record(optimizer, directory) records one")
        return OK
    say(pd.DataFrame(rows, columns=pd.Index(_COLUMNS)).to_string(index=False))
    return status
