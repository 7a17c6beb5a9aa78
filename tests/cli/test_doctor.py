"""`trustlens doctor`: its report on this machine, and on machines that lack something."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import trustlens
from tests.support.compiled import needs_compiler
from trustlens.cli import main


def doctor(tmp_path: Path, before: str = "", **environment: str) -> tuple[int, str]:
    """Return exit status and output of `trustlens doctor` in a process that first runs `before`."""
    code = f"""
        import sys
        {before}
        from trustlens.cli import main
        sys.exit(main(["doctor", {str(tmp_path)!r}]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def line(output: str, name: str) -> str:
    """Return the text of the line with this name."""
    found = re.search(rf"^  {re.escape(name)} +(.*)$", output, re.MULTILINE)
    assert found, f"no line {name!r} in:\n{output}"
    return found[1]


def test_a_machine_without_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROWSER", "/bin/true")
    assert main(["doctor", str(tmp_path / "new" / "runs")]) == 0
    output = capsys.readouterr().out
    assert output.startswith(f"trustlens {trustlens.__version__}, Python 3.")
    for name in ("torch", "numpy", "pandas", "pyarrow", "plotly", "dash", "tensorboard"):
        assert line(output, name) == importlib.metadata.version(name)
    assert line(output, "to record into").endswith(
        "/new/runs' can be written, and does not exist yet"
    )
    assert not (tmp_path / "new").exists()
    assert line(output, "browser") == "/bin/true"
    assert "problems found: 0" in output


@needs_compiler
def test_the_loaded_loops_are_listed(tmp_path: Path) -> None:
    status, output = doctor(tmp_path)
    assert status == 0
    assert line(output, "CPU") == "compiled loops"
    loops = re.findall(r"compiled on this machine, '(.*)'", output)
    assert sorted(Path(loop).name.partition("-")[0] for loop in loops) == ["cpu", "fused"]
    assert all(Path(loop).is_relative_to(tmp_path / "cache") for loop in loops)
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    assert line(output, "C compiler").startswith(f"{compiler} (")


def test_without_a_compiler_the_reason_is_reported(tmp_path: Path) -> None:
    status, output = doctor(tmp_path, PATH="", CC="")
    assert status == 0
    assert line(output, "CPU") == "PyTorch operations; correct, but slower"
    assert output.count("no C compiler") == 3  # two loops, and the compiler itself
    assert line(output, "C compiler").startswith("none")


def test_a_compiler_that_does_not_work(tmp_path: Path) -> None:
    status, output = doctor(tmp_path, CC="false")
    assert status == 0
    assert line(output, "C compiler").startswith("does not work")


def test_without_torch_and_plotly(tmp_path: Path) -> None:
    hidden = "sys.modules |= dict.fromkeys({'torch', 'triton', 'plotly', 'dash'})"
    status, output = doctor(tmp_path, hidden)
    assert status == 0
    assert "runs can be read, not recorded" in line(output, "all devices")
    assert line(output, "torch").startswith("not installed")
    assert line(output, "triton").startswith("not installed")
    assert "pip install 'trustlens-optim[figures]'" in line(output, "plotly")
    assert "pip install 'trustlens-optim[dashboard]'" in line(output, "dash")
    assert line(output, "GPU") == "unknown without PyTorch"


def test_a_required_package_is_missing(tmp_path: Path) -> None:
    status, output = doctor(tmp_path, "sys.modules['pyarrow'] = None")
    assert status == 1
    assert line(output, "pyarrow") == "WRONG: not installed"
    assert line(output, "CPU").startswith("WRONG: cannot record: ModuleNotFoundError")
    assert "problems found: 2" in output


def test_a_recorder_that_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("simulated")

    monkeypatch.setattr(trustlens, "record", fails, raising=False)
    assert main(["doctor", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert line(output, "CPU") == "WRONG: cannot record: RuntimeError: simulated"


def test_a_directory_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["doctor", str(tmp_path / "file" / "runs")]) == 1
    output = capsys.readouterr().out
    assert "file/runs' cannot be written: Not a directory" in line(output, "to record into")


def test_an_address_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "s3://bucket/runs"]) == 2
    assert capsys.readouterr().err == (
        "trustlens: 's3://bucket/runs' is an address; give a directory on this machine\n"
    )
