"""The command ``trustlens``.

Exit status: 0, 1 (something wrong was found) or 2 (bad use: one line on stderr that says what was
received and what to do).
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread
from typing import Any, Final, NoReturn

import trustlens
from trustlens.errors import MissingDependencyError, TrustlensError, UsageError

OK: Final = 0
FOUND: Final = 1
BAD_USE: Final = 2

_SHOWN: Final = ("trust_ratio", "weight_norm", "direction_norm", "update_norm", "grad_norm")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        status = options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (TrustlensError, OSError) as error:
        return _refuse(_told(error))
    return status


def _told(error: TrustlensError | OSError) -> str:
    if isinstance(error, TrustlensError):
        return str(error)
    where = f"'{error.filename}': " if error.filename else ""
    return f"{where}{error.strerror or error}; check the place and its permissions"


def _refuse(message: str) -> int:
    print(f"trustlens: {_shown(message, lines=False)}", file=sys.stderr)
    return BAD_USE


def _say(text: str) -> None:
    print(_shown(text, lines=True))


def _shown(text: str, *, lines: bool) -> str:
    """Return text as any terminal can show it: names come from files that others may have made."""
    plain = "".join(c if c.isprintable() or (lines and c == "\n") else ascii(c)[1:-1] for c in text)
    encoding = sys.stdout.encoding or "utf-8"
    return plain.encode(encoding, "backslashreplace").decode(encoding)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say in one line what was received and where help is."""
        self.exit(BAD_USE, f"{self.prog}: {message}; see '{self.prog} --help'\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="trustlens",
        description="See what your optimizer does to each layer.",
        epilog="example: trustlens dashboard runs/",
    )
    parser.add_argument("--version", action="version", version=f"trustlens {trustlens.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    demo = _command(commands, "demo", _demo, "look at recorded sample runs", "trustlens demo")
    _add_server(demo)

    dashboard = _command(
        commands,
        "dashboard",
        _dashboard,
        "look at runs in the browser",
        "trustlens dashboard runs/",
    )
    dashboard.add_argument("runs", metavar="RUNS", help="a run, or a folder of runs")
    _add_server(dashboard)

    listing = _command(
        commands, "list", _list, "list runs with their verdict", "trustlens list runs/"
    )
    listing.add_argument("runs", metavar="RUNS", help="a run, or a folder of runs")

    show = _command(
        commands,
        "show",
        _show,
        "print what a run is and its layers at the last step",
        "trustlens show runs/lamb --quantity trust_ratio update_ratio",
    )
    show.add_argument("run_path", metavar="RUN", help="the directory or address of a run")
    show.add_argument(
        "--quantity",
        nargs="+",
        default=_SHOWN,
        metavar="NAME",
        help=f"quantities to print (default: {' '.join(_SHOWN)})",
    )

    diagnose = _command(
        commands,
        "diagnose",
        _diagnose,
        "rank the layers that left their own past; status 1 if there are any",
        "trustlens diagnose runs/lamb",
    )
    diagnose.add_argument("run_path", metavar="RUN", help="the directory or address of a run")

    repair = _command(
        commands,
        "repair",
        _repair,
        "seal what a process left that died while it recorded; status 1 if rows are lost",
        "trustlens repair runs/lamb",
    )
    repair.add_argument("run_path", metavar="RUN", help="the directory or address of a run")

    export = _command(commands, "export", None, "hand a run to another tool", "trustlens export -h")
    formats = export.add_subparsers(title="formats", required=True, metavar="FORMAT")
    board = _command(
        formats,
        "tensorboard",
        _export_tensorboard,
        "write TensorBoard event files",
        "trustlens export tensorboard runs/lamb tb/lamb",
    )
    board.add_argument("run_path", metavar="RUN", help="the directory or address of a run")
    board.add_argument("logdir", metavar="LOGDIR", help="where TensorBoard will look")
    return parser


def _command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int] | None,
    summary: str,
    example: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example: {example}",
    )
    if run is not None:
        parser.set_defaults(run=run)
    return parser


def _add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on (127.0.0.1)")
    parser.add_argument("--port", type=_port, default=8050, help="port to serve on (8050)")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is not a port; give a number from 1 to 65535")
    return int(text)


def _demo(options: argparse.Namespace) -> int:
    return _serve(recorded_runs(), options)


def _dashboard(options: argparse.Namespace) -> int:
    from trustlens.analysis.discovery import local_folder  # noqa: PLC0415 — as below

    root = local_folder(options.runs)
    if not root.is_dir():
        what = "is not a directory" if root.exists() else "does not exist"
        raise UsageError(f"'{root}' {what}; give a run, or a folder of runs")
    return _serve(root, options)


def recorded_runs() -> Path:
    """Return the folder of the sample runs: inside the package, or in the repository."""
    package = Path(trustlens.__file__).parent
    for folder in (package / "recorded", package.parent / "sample_runs" / "recorded"):
        if folder.is_dir():
            return folder
    raise UsageError("this installation has no sample runs; install trustlens-optim from its wheel")


def _serve(root: Path, options: argparse.Namespace) -> int:
    try:
        # By name: the dashboard is a package of its own, below this one, and may be missing.
        app = importlib.import_module("trustlens_dashboard.app")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("trustlens", "trustlens_dashboard"):
            raise
        raise MissingDependencyError("the dashboard", error.name or "dash", "dashboard") from None

    def announce(address: str) -> None:
        _say(f"trustlens: {root} at {address} (Ctrl+C ends it)")
        sys.stdout.flush()
        if not options.no_browser:
            # On a thread: some browsers hold their caller up until they are closed.
            Thread(target=webbrowser.open, args=[address], daemon=True).start()

    app.serve(root, host=options.host, port=options.port, announce=announce)
    return OK


def _list(options: argparse.Namespace) -> int:
    import pandas as pd  # noqa: PLC0415 — `trustlens --help` need not wait for it

    from trustlens.analysis.diagnose import verdict  # noqa: PLC0415
    from trustlens.analysis.discovery import local_folder  # noqa: PLC0415

    root = local_folder(options.runs)
    columns = ["run", "optimizer", "layers", "steps", "status", "verdict"]
    status, rows = OK, list[tuple[Any, ...]]()
    for path in trustlens.find_runs(root):
        place = str(path.relative_to(root)) if path != root else path.resolve().name
        try:
            run = trustlens.Run(path)
            layers, told = len(run.layer_names), verdict(run.diagnose(), run)
            rows.append((place, run.family, layers, run.last_step, run.status, told))
        except (TrustlensError, OSError) as error:
            status = FOUND
            rows.append((place, "–", "–", "–", "–", f"cannot be read: {_told(error)}"))
    if not rows:
        _say(f"no runs in '{root}' yet; trustlens.record(optimizer, directory) makes one")
        return OK
    _say(pd.DataFrame(rows, columns=pd.Index(columns)).to_string(index=False))
    return status


def _show(options: argparse.Namespace) -> int:
    from trustlens.store.location import place  # noqa: PLC0415 — `trustlens --help` need not wait

    run = trustlens.Run(place(options.run_path))
    for name in options.quantity:
        trustlens.quantity(name)
    metrics = run.metrics()
    last = run.last_step
    _say(f"{run.name}: {run.family}, {len(run.layer_names)} layers, {last} steps, {run.status}")
    for sentence in run.missing():
        _say(f"note: {sentence}")
    for index, optimizer in enumerate(run.info.optimizers):
        variant = f", variant {optimizer.variant}" if optimizer.variant else ""
        for group in optimizer.groups:
            told = ", ".join(f"{key}={value}" for key, value in group.items() if value is not None)
            _say(f"optimizer {index}: {optimizer.name}({told}){variant}")
    for name, rows in metrics.groupby("name"):
        _say(f"{name}: {rows['value'].iloc[-1]:.6g} at step {rows['step'].iloc[-1]}")
    span = run.files.span("layers")
    if span is None:
        _say("no layers are recorded yet")
        return OK
    _say(f"layers at step {span[1]}:")
    table = run.layers(options.quantity, steps=[span[1]]).drop(columns="step")
    _say(table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    return OK


def _repair(options: argparse.Namespace) -> int:
    from trustlens.store.location import place  # noqa: PLC0415
    from trustlens.store.remote.uploader import repair_spool  # noqa: PLC0415
    from trustlens.store.repair import repair  # noqa: PLC0415

    directory = place(options.run_path)
    found = repair(directory) if isinstance(directory, Path) else repair_spool(directory)
    if found is not None and not isinstance(directory, Path):
        _say(f"all of '{options.run_path}' is uploaded now")
    elif not found:
        _say(f"'{options.run_path}' needs no repair")
    for left in found or ():
        _say(f"{left.table}: {left.rows} rows sealed")
        if left.torn:
            _say(
                f"{left.table}: the process died while it wrote what came next; "
                f"the {left.torn} bytes of it that reached the disk are no whole rows"
            )
    return FOUND if any(left.torn for left in found or ()) else OK


def _diagnose(options: argparse.Namespace) -> int:
    from trustlens.analysis.diagnose import verdict  # noqa: PLC0415

    run = trustlens.open_run(options.run_path)
    findings = run.diagnose()
    _say(f"{run.name}: {verdict(findings, run)}")
    if findings.empty:
        return OK
    _say(findings.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    return FOUND


def _export_tensorboard(options: argparse.Namespace) -> int:
    run = trustlens.open_run(options.run_path)
    trustlens.export.to_tensorboard(run, options.logdir, progress=True)
    _say(f"{run.name}: look at it with: tensorboard --logdir '{options.logdir}'")
    return OK
