"""``trustlens doctor``: report how this machine can record, and what is missing."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import logging
import platform
import shutil
import subprocess
import tempfile
import webbrowser
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import trustlens
from trustlens.cli.parser import Subparsers, add_command
from trustlens.cli.terminal import FOUND, OK, say
from trustlens.errors import UsageError

_REQUIRED: Final = ("numpy", "pandas", "pyarrow", "platformdirs", "tqdm")
_OPTIONAL: Final = {  # packages, and the extra of trustlens-optim that installs them
    "plotly": "figures",
    "dash": "dashboard",
    "dash-ag-grid": "dashboard",
    "dash-mantine-components": "dashboard",
    "tensorboard": "tensorboard",
    "fsspec": "remote",
}
_BACKENDS: Final = {  # names of backends, as in `run.json`, and the texts of the report
    "cpu": "compiled loops",
    "triton": "Triton kernels",
    "portable": "PyTorch operations; correct, but slower",
}


class _Line(NamedTuple):
    name: str
    text: str
    wrong: bool = False


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "doctor",
        run,
        "report how this machine can record, and what is missing; status 1 if something "
        "required does not work",
        "trustlens doctor runs/",
    )
    parser.add_argument(
        "directory",
        nargs="?",
        default=".",
        help="directory to record into (default: the current one)",
    )


def run(options: argparse.Namespace) -> int:
    """Print the report; return 1 if something required does not work, else 0."""
    if "://" in options.directory:
        raise UsageError(f"'{options.directory}' is an address; give a directory on this machine")
    system = f"{platform.system()} {platform.machine()}"
    say(f"trustlens {trustlens.__version__}, Python {platform.python_version()}, {system}")
    wrong = 0
    for title, lines in (
        ("Recording", _recording()),
        ("Packages", _packages()),
        ("Machine", _machine()),
        ("Directories", _directories(Path(options.directory))),
    ):
        say(f"\n{title}")
        for line in lines:
            say(f"  {line.name:<24}{'WRONG: ' if line.wrong else ''}{line.text}")
            wrong += line.wrong
    say(f"\nproblems found: {wrong}")
    return FOUND if wrong else OK


def _recording() -> Iterator[_Line]:
    if not _is_installed("torch"):
        yield _Line("all devices", "PyTorch is not installed: runs can be read, not recorded")
        return
    import torch  # noqa: PLC0415

    devices = [torch.device("cpu")]
    if torch.accelerator.is_available():
        devices += filter(None, [torch.accelerator.current_accelerator()])
    for device in devices:
        yield from _try_recording(device)


def _try_recording(device: Any) -> Iterator[_Line]:
    """Record one step on a device; yield a line with the backend, then the log messages."""
    import torch  # noqa: PLC0415

    name = "CPU" if device.type == "cpu" else device.type
    with _collect_messages() as messages, tempfile.TemporaryDirectory() as folder:
        try:
            parameter = torch.nn.Parameter(torch.ones(3, device=device))
            optimizer = trustlens.optim.Lamb([parameter])
            with trustlens.record(optimizer, Path(folder, "run")):
                parameter.grad = torch.ones_like(parameter)
                optimizer.step()
            found = trustlens.open_run(Path(folder, "run"))
            backend, rows = found.info.recording.statistics, len(found.layers())
        except Exception as error:  # noqa: BLE001 — every error is reported
            yield _Line(name, f"cannot record: {type(error).__name__}: {error}", wrong=True)
        else:
            text = _BACKENDS.get(backend, backend) if rows else "recorded nothing"
            yield _Line(name, text, wrong=not rows)
    for message in messages:
        yield _Line("", message.removeprefix("trustlens: "))


@contextlib.contextmanager
def _collect_messages() -> Generator[list[str]]:
    """Collect the log messages of trustlens.

    They say which compiled loops were loaded, or why none were.
    """
    collected: list[str] = []

    class _Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            collected.append(record.getMessage())

    logger, handler = logging.getLogger("trustlens"), _Collector()
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield collected
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def _packages() -> Iterator[_Line]:
    for name in _REQUIRED:
        installed = _is_installed(name)
        yield _Line(name, _version(name) if installed else "not installed", wrong=not installed)
    torch = "not installed; needed only to record: see pytorch.org"
    yield _Line("torch", _version("torch") if _is_installed("torch") else torch)
    triton = "not installed; needed only to record on a GPU"
    yield _Line("triton", _version("triton") if _is_installed("triton") else triton)
    for name, extra in _OPTIONAL.items():
        missing = f"not installed: pip install 'trustlens-optim[{extra}]'"
        yield _Line(name, _version(name) if _is_installed(name) else missing)


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name.replace("-", "_")) is not None


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "installed, unknown version"


def _machine() -> Iterator[_Line]:
    yield _Line("GPU", _gpu())
    yield _Line("C compiler", _compiler())
    try:
        browser = webbrowser.get().name
    except webbrowser.Error:
        browser = "none that Python can start; open the dashboard's address yourself"
    yield _Line("browser", browser)


def _gpu() -> str:
    if not _is_installed("torch"):
        return "unknown without PyTorch"
    import torch  # noqa: PLC0415

    if torch.cuda.is_available():
        return ", ".join(map(torch.cuda.get_device_name, range(torch.cuda.device_count())))
    if torch.accelerator.is_available():
        return str(torch.accelerator.current_accelerator())
    if shutil.which("nvidia-smi"):
        return f"possibly present, but PyTorch {torch.__version__} cannot use it"
    return "none"


def _compiler() -> str:
    from trustlens.kernels.compile import find_compiler  # noqa: PLC0415

    try:
        command = find_compiler()
        done = subprocess.run(  # noqa: S603 — the user's own compiler
            [*command.split(), "--version"], capture_output=True, text=True, timeout=10, check=True
        )
    except FileNotFoundError as error:
        return f"none ({error}); needed only if no prebuilt loops are installed"
    except (OSError, subprocess.SubprocessError) as error:
        return f"does not work: {error}"
    return f"{command} ({(done.stdout.splitlines() or [''])[0]})"


def _directories(directory: Path) -> Iterator[_Line]:
    from trustlens.cache_folder import cache_folder  # noqa: PLC0415

    yield _writable("to record into", directory.absolute())
    yield _writable("cache", cache_folder())


def _writable(name: str, directory: Path) -> _Line:
    """Report whether the directory, or its nearest existing parent, is writable."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        text = f"'{directory}' cannot be written: {error.strerror or error}"
        return _Line(name, text, wrong=True)
    made = "" if existing == directory else ", and does not exist yet"
    return _Line(name, f"'{directory}' can be written{made}")
