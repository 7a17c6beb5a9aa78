"""The benchmark of recording: cost from times, tables from results, and the command line."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(REPOSITORY)
    from benchmarks import pages
    from benchmarks.common import measure, tables
    from benchmarks.overhead import cases, run, table

    return SimpleNamespace(
        cases=cases, measure=measure, pages=pages, run=run, table=table, tables=tables
    )


def running(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.overhead", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def found(**figures: Any) -> dict[str, Any]:
    """Return a result as a case writes it."""
    machine = {"cpu": "a CPU", "cores": 2, "threads": 2, "gpu": None}
    versions = {"python": "3.11", "torch": "2.13.0", "trustlens": "0.1.0"}
    return {"machine": machine, "versions": versions, "date": "a day", **figures}


def test_a_drift_of_the_machine_s_speed_does_not_change_the_cost(suite: Any) -> None:
    plain = [1.0, 2.0, 4.0, 8.0, 16.0]
    recorded = [one + 0.5 for one in plain]
    entry = suite.measure.summary(recorded, plain)
    assert entry["rounds"] == 5
    assert entry["step_ms"] == 4500
    assert entry["baseline_ms"] == 4000
    assert entry["added_ms"] == 500
    assert entry["added_percent"] == 12.5  # of the median plain step, 4
    assert entry["added_percent_quartiles"] == [12.5, 12.5]


def test_the_cost_is_the_median_of_the_differences_within_a_round(suite: Any) -> None:
    plain, recorded = [1.0, 10.0, 2.0], [2.0, 10.0, 5.0]
    entry = suite.measure.summary(recorded, plain)
    assert entry["added_ms"] == 1000  # of 1, 0 and 3; the medians alone would differ by 3
    assert entry["added_percent"] == 50
    assert entry["added_percent_quartiles"] == [25, 100]


def test_the_baseline_has_no_cost(suite: Any) -> None:
    plain = [1.0, 2.0, 3.0]
    assert suite.measure.summary(plain, plain) == {"rounds": 3, "step_ms": 2000}


def test_one_round_has_quartiles(suite: Any) -> None:
    assert suite.measure.quartiles([3.0]) == (3.0, 3.0)


def test_the_order_is_reversed_each_round(suite: Any) -> None:
    seen: list[str] = []
    steps = {name: (lambda name=name: seen.append(name)) for name in "abc"}
    times = suite.measure.interleave(steps, 3, 2, suite.measure.wall, failed={})
    assert "".join(seen) == "ccbbaa" + "aabbcc" + "ccbbaa"
    assert {name: len(each) for name, each in times.items()} == {"a": 3, "b": 3, "c": 3}


def contender(suite: Any, name: str, *, starts: Any = None, steps: Any = None, ends: Any = None):
    def start(folder: Path) -> Any:
        (folder / "file").write_text(name)
        if starts:
            starts()
        return suite.measure.Running(steps or (lambda: None), ends or dict)

    return suite.measure.Contender(name, f"what {name} is", start)


def failing() -> None:
    raise RuntimeError("it broke\nand so on")


def test_a_contender_that_fails_is_reported_and_the_others_continue(
    suite: Any, capsys: Any
) -> None:
    calls: list[int] = []

    def fails_later() -> None:
        calls.append(1)
        if len(calls) > 4:
            failing()

    def prints() -> dict[str, Any]:
        print("hello")  # noqa: T201
        return {"kept": True}

    entries = suite.measure.compare(
        [
            contender(suite, "plain"),
            contender(suite, "at the start", starts=failing),
            contender(suite, "in a step", steps=fails_later),
            contender(suite, "at the end", ends=failing),
            contender(suite, "well", ends=prints),
        ],
        rounds=4,
    )
    assert entries["at the start"] == {
        "what": "what at the start is",
        "why": "RuntimeError: it broke",
    }
    assert entries["in a step"]["why"] == "RuntimeError: it broke"
    assert entries["at the end"]["why"] == "in close: RuntimeError: it broke"
    assert entries["well"]["kept"]
    assert entries["well"]["rounds"] == entries["plain"]["rounds"] == 4
    assert "hello" not in capsys.readouterr().out


@pytest.mark.parametrize("options", [{"starts": failing}, {"steps": failing}])
def test_an_error_of_the_baseline_is_raised(suite: Any, options: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="it broke"):
        suite.measure.compare([contender(suite, "plain", **options)], rounds=1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports the CPU time of a thread")
def test_the_time_of_threads_is_reported(suite: Any) -> None:
    ended = threading.Event()

    def busy() -> None:
        while not ended.is_set():
            sum(range(1000))

    def end() -> dict[str, Any]:
        ended.set()
        return {}

    entries = suite.measure.compare(
        [
            contender(suite, "plain"),
            contender(
                suite,
                "busy",
                starts=threading.Thread(target=busy, daemon=True).start,
                steps=lambda: time.sleep(0.02),
                ends=end,
            ),
        ],
        rounds=5,
    )
    assert entries["busy"]["thread_ms"] > 0
    assert "thread_ms" not in entries["plain"]


def test_the_environment_is_described(suite: Any) -> None:
    environment = suite.measure.environment(7, ["numpy", "no-such-package"])
    assert environment["rounds"] == 7
    assert environment["machine"]["cpu"]
    assert set(environment["versions"]) == {"python", "torch", "trustlens", "numpy"}
    json.dumps(environment, allow_nan=False)


def test_the_pages_show_the_results(suite: Any) -> None:
    pages = suite.pages
    for path, made in ((pages.README, pages.readme), (pages.PAGE, pages.documentation)):
        page = path.read_text(encoding="utf-8")
        assert page == made(page), "run: python -m benchmarks.pages"


def test_missing_results_are_shown_as_not_measured(suite: Any) -> None:
    lines = suite.table.figures({})
    assert len(lines) == 2 + len(suite.table.ROWS)
    assert all(line.endswith("| not measured |") for line in lines[2:])
    assert "not measured" in suite.table.side_by_side({})[-1]
    assert suite.table.measured_on({}) == []


def test_tables_show_the_values_of_the_results(suite: Any) -> None:
    contenders = {
        "plain": {"step_ms": 1000.0},
        "usual loop": {"added_ms": 100.0, "added_percent": 10.0},
        "trustlens": {
            "baseline_ms": 1000.0,
            "added_ms": 9.0,
            "added_percent": 0.9,
            "thread_ms": 5.0,
        },
        "broken": {"why": "it broke"},
        "expensive": {"added_ms": 2000.0, "added_percent": 200.0},
    }
    results = {
        "gpt": found(contenders=contenders),
        "small": found(contenders={"trustlens": {"added_ms": 0.12, "added_percent": 14.0}}),
        "gpu-gpt2": found(contenders={"trustlens": {"why": "out of memory"}}),
        "start": found(import_record_ms=44.0, record_ms=9.0, close_ms=350.0),
    }
    text = suite.table.block(results)
    for line in (
        "| GPT, 10.9 M parameters, batch 8 × 256, every step | ≤ 1.2 % | 0.90 % |",
        "| the same, relative to a per-parameter `.norm().item()` loop | ≤ 0.12 | 0.09 × |",
        "| 150 tensors of 32 × 32 | ≤ 200 µs | 120 µs |",
        "| on a GPU: GPT-2, bf16, batch 32 × 1024, every step | ≤ 0.5 % | does not run |",
        "| importing the recorder, after torch and its optimizers | ≤ 50 ms | 44.0 ms |",
        "| `record()`, with the one-time build of the compiled loop |  | does not run |",
        "| `close()` after 20,000 steps of 50 layers | ≤ 1 s | 0.35 s |",
        "| MNIST CNN, batch 512, every step | ≤ 0.3 % | not measured |",
        "| **trustlens** | 0.90 % | not measured | 0.50 % |",
        "| broken | does not run | not measured |  |",
        "<sub>gpt, small, gpu-gpt2, start: a CPU, 2 cores, Python 3.11, torch 2.13.0, a day.</sub>",
    ):
        assert line in text.splitlines()
    order = [line.split(" | ")[0].strip("|* ") for line in suite.table.side_by_side(results)[2:]]
    assert order == ["trustlens", "usual loop", "expensive", "broken"]


def test_lamb_steps_are_shown_relative_to_adamw(suite: Any) -> None:
    contenders = {"Lamb": {"added_percent": 25.0}, "timm": {"why": "not installed"}}
    lines = suite.table.lambs({"lamb": found(contenders=contenders)})
    assert "| `trustlens.optim.Lamb` | 1.25 × |" in lines
    assert "| timm's Lamb | does not run |" in lines
    assert "| torch-optimizer's Lamb | not measured |" in lines


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.94, "%", "0.94 %"),
        (12.34, "%", "12.3 %"),
        (551.4, "%", "551 %"),
        (-0.03, "%", "−0.03 %"),
        (-0.001, "%", "0.00 %"),
    ],
)
def test_numbers_have_about_three_digits(suite: Any, value: float, unit: str, text: str) -> None:
    assert suite.tables.shown(value, unit) == text


def test_a_page_without_markers_is_refused(suite: Any) -> None:
    with pytest.raises(ValueError, match="put them where the tables belong"):
        suite.tables.replaced("# A page", "cost", "")


def test_every_row_has_a_case_and_every_case_a_row(suite: Any) -> None:
    assert {row.case for row in suite.table.ROWS} == set(suite.cases.CASES)


def test_the_command_lists_its_cases_and_has_examples(suite: Any) -> None:
    listed = running("--list")
    assert listed.returncode == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(suite.cases.CASES)
    assert "python -m benchmarks.overhead --only gpt mnist" in running("--help").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--only", "nothing"], "invalid choice: 'nothing'"), (["--rounds", "0"], "give 1 or more")],
)
def test_wrong_arguments_are_refused(
    suite: Any, arguments: list[str], said: str, capsys: Any
) -> None:
    with pytest.raises(SystemExit) as ended:
        suite.run.main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_case_runs_in_a_fresh_process_and_writes_its_result(suite: Any, tmp_path: Path) -> None:
    done = running("--only", "small", "--rounds", "1", "--to", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "150 tensors of 32 × 32" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["small.json"]
    results = suite.table.read(tmp_path)
    assert results["small"]["contenders"]["trustlens"]["dropped"] == 0
    assert "µs" in suite.table.block(results)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the case runs")
def test_without_a_gpu_its_cases_are_skipped(suite: Any, capsys: Any) -> None:
    assert suite.run.main(["--only", "gpu-host"]) == 0
    assert capsys.readouterr().out == "gpu-host: needs a CUDA device\n"


def test_a_case_that_fails_is_reported(
    suite: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    case = suite.cases.Case("a case", 1, lambda rounds: failing())
    monkeypatch.setitem(suite.run.CASES, "small", case)
    arguments = ["--here", "--only", "small", "--rounds", "1", "--to", str(tmp_path)]
    assert suite.run.main(arguments) == 1
    assert capsys.readouterr().err == "small: RuntimeError: it broke\n"
    assert list(tmp_path.iterdir()) == []
