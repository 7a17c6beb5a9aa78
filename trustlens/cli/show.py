"""``trustlens show``: print settings, metrics and the last step of a run."""

from __future__ import annotations

import argparse
from typing import Final

import trustlens
from trustlens.cli.parser import Subparsers, add_command, add_run
from trustlens.cli.terminal import OK, say

_SHOWN: Final = ("trust_ratio", "weight_norm", "direction_norm", "update_norm", "grad_norm")


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "show",
        run,
        "print settings, metrics and the last step of a run",
        "trustlens show runs/lamb --quantity trust_ratio update_ratio",
    )
    add_run(parser)
    parser.add_argument(
        "--quantity",
        nargs="+",
        default=_SHOWN,
        metavar="NAME",
        help=f"quantities to print (default: {' '.join(_SHOWN)})",
    )


def run(options: argparse.Namespace) -> int:
    """Print the run; return 0."""
    from trustlens.analysis.names import quantity  # noqa: PLC0415

    # Not `open_run`: it would log what is missing, which is printed below.
    shown = trustlens.Run(options.run_path)
    for name in options.quantity:
        quantity(name)  # raises before anything is printed
    metrics = shown.metrics()
    layers, last = len(shown.layer_names), shown.last_step
    say(f"{shown.name}: {shown.family}, {layers} layers, {last} steps, {shown.status}")
    for sentence in shown.missing():
        say(f"note: {sentence}")
    for index, optimizer in enumerate(shown.info.optimizers):
        variant = f", variant {optimizer.variant}" if optimizer.variant else ""
        for group in optimizer.groups:
            settings = [f"{key}={value}" for key, value in group.items() if value is not None]
            say(f"optimizer {index}: {optimizer.name}({', '.join(settings)}){variant}")
    for name, rows in metrics.groupby("name"):
        say(f"{name}: {rows['value'].iloc[-1]:.6g} at step {rows['step'].iloc[-1]}")
    span = shown.span()
    if span is None:
        say("no layers are recorded yet")
        return OK
    say(f"layers at step {span[1]}:")
    table = shown.layers(options.quantity, steps=[span[1]]).drop(columns="step")
    say(table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    return OK
