"""The command line: output, exit statuses, and one-line error messages."""

from __future__ import annotations

import contextlib
import io
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import trustlens
from tests.support.runs import make_run
from trustlens import cli
from trustlens.analysis.diagnose import diagnose
from trustlens.cli import main
from trustlens.store.run_info import OptimizerInfo, read_info, write_info

Make = Callable[..., Path]


# Top-level commands, each in a module with its name.
COMMANDS = ["demo", "dashboard", "list", "show", "diagnose", "repair", "export"]


def help_of(*command: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    return printed.getvalue()


def listed_commands() -> list[str]:
    """Return the commands in `trustlens --help`, in its order."""
    return re.findall(r"^    (\w+)(?: |$)", help_of(), re.MULTILINE)


def test_the_commands_are_listed() -> None:
    assert [command for command in listed_commands() if command in COMMANDS] == COMMANDS


def test_each_command_has_its_own_module() -> None:
    folder = Path(cli.__file__).parent
    assert all((folder / f"{command}.py").is_file() for command in listed_commands())


@pytest.mark.parametrize("command", [[], *[[name] for name in COMMANDS], ["export", "tensorboard"]])
def test_each_command_has_help_with_an_example(command: list[str]) -> None:
    example = f"example: trustlens {' '.join(command)}".strip()
    assert example in help_of(*command)


def test_each_command_is_on_one_line_with_its_summary() -> None:
    for command in listed_commands():
        assert re.search(rf"^    {command} +\w", help_of(), re.MULTILINE), command


def test_help_imports_no_slow_package() -> None:
    heavy = {"torch", "pandas", "numpy", "pyarrow", "plotly", "dash"}
    code = f"""
import sys
from trustlens.cli import main
try:
    main(["show", "--help"])
finally:
    print(sorted({heavy} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_list(synthetic_run: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic_run("adam", steps=30)
    synthetic_run("lamb", steps=20, optimizer="trustlens.optim.lamb.Lamb", close=False)
    assert main(["list", str(tmp_path)]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "optimizer", "layers", "steps", "status", "verdict"]
    assert rows[0].split()[:5] == ["adam", "Adam", "8", "30", "closed"]
    assert rows[1].split()[:5] == ["lamb", "LAMB", "8", "20", "recording"]


def test_list_reports_a_broken_run_and_shows_the_others(
    synthetic_run: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    synthetic_run("good")
    (synthetic_run("newer") / "run.json").write_text('{"schema_version": 99}')
    assert main(["list", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "good" in out
    assert "schema 99" in out


def test_list_reports_a_run_without_read_permission(
    synthetic_run: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refusing(run: trustlens.Run) -> pd.DataFrame:
        if run.name == "bad":
            raise PermissionError(13, "Permission denied", "bad/layers")
        return diagnose(run)

    synthetic_run("bad")
    synthetic_run("good", steps=30)
    monkeypatch.setattr(trustlens.Run, "diagnose", refusing)
    assert main(["list", str(tmp_path)]) == 1
    _, bad, good = capsys.readouterr().out.splitlines()
    assert "cannot be read: 'bad/layers': Permission denied" in bad
    assert good.split()[:5] == ["good", "Adam", "8", "30", "closed"]


def test_list_of_the_current_directory_shows_the_run_name(
    synthetic_run: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(synthetic_run("adam"))
    assert main(["list", "."]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["adam", "Adam"]


def test_control_characters_in_names_are_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_run(tmp_path / "run", layers=["a\x1b[2Jb", "λ"], name="x\x1b]0;owned\x07")
    assert main(["show", str(path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"a\x1b[2Jb" in out
    assert "λ" in out
    assert main(["show", str(path.parent / "no\nwhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_characters_that_the_terminal_cannot_encode_are_escaped(synthetic_run: Make) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trustlens", "show", str(synthetic_run("run", layers=["λ"]))],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert r"\u03bb" in done.stdout


def test_an_os_error_is_one_line_and_status_2(
    synthetic_run: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "tb/events")

    path = synthetic_run("run")
    monkeypatch.setattr(trustlens, "Run", refuse)
    assert main(["show", str(path)]) == 2
    err = capsys.readouterr().err
    assert "'tb/events': Permission denied" in err
    assert err.count("\n") == 1


def test_list_of_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", str(tmp_path)]) == 0
    assert "no runs" in capsys.readouterr().out


def test_show(synthetic_run: Make, capsys: pytest.CaptureFixture[str]) -> None:
    path = synthetic_run("adam", steps=30)
    assert main(["show", str(path), "--quantity", "trust_ratio", "update_ratio"]) == 0
    out = capsys.readouterr().out
    run = trustlens.open_run(path)
    assert "30 steps, closed" in out
    assert f"{run.matrix('trust_ratio').loc[30, 'block3.bias']:.4g}" in out
    assert f"{run.matrix('update_ratio').loc[30, 'block3.bias']:.4g}" in out


def test_show_prints_the_variant(synthetic_run: Make, capsys: pytest.CaptureFixture[str]) -> None:
    path = synthetic_run("timm")
    timm = OptimizerInfo("timm.optim.lamb.Lamb", ({"lr": 0.1},), "LAMB", "timm")
    write_info(path, replace(read_info(path), optimizers=(timm,)))
    assert main(["show", str(path)]) == 0
    assert "optimizer 0: timm.optim.lamb.Lamb(lr=0.1), variant timm\n" in capsys.readouterr().out


def test_the_status_of_diagnose_is_1_if_there_are_findings(
    synthetic_run: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diagnose", str(synthetic_run("healthy", steps=100))]) == 0
    assert capsys.readouterr().out == "healthy: no anomalies\n"
    update = np.full((100, 8), 0.01)
    update[60:, 3] = 50.0
    weight = np.ones((100, 8))
    broken = synthetic_run(
        "broken", steps=100, values={"update_norm": update, "weight_norm": weight}
    )
    assert main(["diagnose", str(broken)]) == 1
    out = capsys.readouterr().out
    assert "block1.bias" in out
    assert "61" in out


@pytest.mark.parametrize(("layers", "steps"), [(0, 0), (0, 3), (3, 0), (3, 1)])
@pytest.mark.parametrize("command", ["show", "diagnose", "list"])
def test_runs_with_few_or_no_rows(
    synthetic_run: Make, command: str, layers: int, steps: int
) -> None:
    assert main([command, str(synthetic_run(layers=layers, steps=steps))]) == 0


def _mistakes(run: Path, folder: Path) -> dict[str, tuple[list[str], str]]:
    newer, foreign, empty = folder / "newer", folder / "foreign", folder / "empty"
    for path, text in ((newer, '{"schema_version": 99}'), (foreign, "{")):
        path.mkdir()
        (path / "run.json").write_text(text)
    empty.mkdir()
    damaged = make_run(folder / "damaged", steps=3)
    (damaged / "layers" / "000000.parquet").write_bytes(b"PAR1")
    store = "s3://bucket/sweep?endpoint_override=localhost:1"
    file = folder / "file"
    file.write_text("")
    return {
        "no such directory": (["show", str(folder / "nowhere")], "there is no directory"),
        "no run in it": (["diagnose", str(empty)], "holds no run"),
        "foreign file": (["show", str(foreign)], "not a run.json of trustlens"),
        "newer": (["show", str(newer)], "pip install -U trustlens-optim"),
        "a file": (["export", "tensorboard", str(file), "tb"], "is a file"),
        "no quantity": (["show", str(run), "--quantity", "nope"], "choose one of: trust_ratio"),
        "no runs folder": (["dashboard", str(folder / "nowhere")], "does not exist"),
        "list nowhere": (["list", str(folder / "nowhere")], "does not exist"),
        "no address": (
            ["dashboard", str(run), "--host", "203.0.113.7"],
            "choose another with --host",
        ),
        "list a store": (["list", store], "'s3://bucket/sweep' is not on this machine"),
        "look at a store": (["dashboard", store], "'trustlens show ADDRESS'"),
        "export to a store": (["export", "tensorboard", str(run), store], "not on this machine"),
        "export a damaged run": (["export", "tensorboard", str(damaged), "tb"], "is damaged"),
    }


MISTAKES = (
    "no such directory",
    "no run in it",
    "foreign file",
    "newer",
    "a file",
    "no quantity",
    "no runs folder",
    "list nowhere",
    "no address",
    "list a store",
    "look at a store",
    "export to a store",
    "export a damaged run",
)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_user_error_is_one_line_and_status_2(
    synthetic_run: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mistake: str,
) -> None:
    arguments, message = _mistakes(synthetic_run("run"), tmp_path)[mistake]
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert not Path("s3:").exists()


def test_a_port_in_use(synthetic_run: Make, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        path = synthetic_run("run")
        assert main(["dashboard", str(path), "--port", str(port), "--no-browser"]) == 2
    assert "choose another with --port" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["nope"], ["show"], ["dashboard", "x", "--port", "80000"]]
)
def test_invalid_arguments_are_one_line_and_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("layers", [2, 300])  # output shorter and longer than the pipe's buffer
def test_a_reader_that_closes_the_pipe_early_is_no_error(synthetic_run: Make, layers: int) -> None:
    path = synthetic_run("run", layers=layers, steps=2)
    show = subprocess.Popen(
        [sys.executable, "-m", "trustlens", "show", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert show.stdout is not None
    assert show.stderr is not None
    show.stdout.close()
    assert show.stderr.read() == b""
    show.stderr.close()
    assert show.wait() == 0
