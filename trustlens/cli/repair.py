"""``trustlens repair``: recover a run whose process was killed while recording."""

from __future__ import annotations

import argparse
from pathlib import Path

from trustlens.cli.parser import Subparsers, add_command, add_run
from trustlens.cli.terminal import FOUND, OK, say


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "repair",
        run,
        "recover an interrupted run; status 1 if rows are lost",
        "trustlens repair runs/lamb",
    )
    add_run(parser)


def run(options: argparse.Namespace) -> int:
    """Recover rows from the journal. Upload the run, too, if its directory is on an object store.

    Return 1 if rows are lost, else 0.
    """
    from trustlens.store.address import locate  # noqa: PLC0415
    from trustlens.store.remote.uploader import repair_remote  # noqa: PLC0415
    from trustlens.store.remote_location import remote_of  # noqa: PLC0415
    from trustlens.store.repair import repair  # noqa: PLC0415

    directory = locate(options.run_path)
    remote = remote_of(directory)
    found = repair(Path(str(directory))) if remote is None else repair_remote(remote)
    if found is not None and remote is not None:
        say(f"'{options.run_path}' is uploaded completely")
    elif not found:
        say(f"'{options.run_path}' needs no repair")
    for each in found or ():
        say(f"{each.table}: recovered {each.rows} rows")
        if each.torn:
            say(f"{each.table}: discarded {each.torn} bytes of an incomplete batch")
    return FOUND if any(each.torn for each in found or ()) else OK
