"""`run.json` is parsed, checked, and rewritten without losing unknown keys."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import run_info
from trustlens.store.run_info import RecordingInfo, RunInfo, read_info, write_info

FULL: dict[str, Any] = {
    "every": 5,
    "histograms_every": 20,
    "precision": 12,
    "statistics": "cpu, portable",
    "session": "0123abcd",
    "optimizer_steps_before": [3, 0],
    "gaps": [[2, 3], [6, 9]],
    "passed_over": [[12, 20]],
    "torn_layers": [[1, 30]],
    "torn_metrics": [[4, 4]],
    "dropped": 7,
    "stopped": "RuntimeError: injected",
    "repaired": "2026-11-01T00:00:00+00:00",
    "of_a_newer_version": {"nested": [1, 2]},
}
"""All keys as in the file: their names are part of the format."""


def test_all_keys_survive_a_rewrite(tmp_path: Path) -> None:
    write_info(tmp_path, run_info())
    raw = json.loads((tmp_path / "run.json").read_text())
    raw["recorder"] = FULL
    (tmp_path / "run.json").write_text(json.dumps(raw))
    info = read_info(tmp_path)
    assert info.recording == RecordingInfo(
        every=5,
        histograms_every=20,
        precision=12,
        statistics="cpu, portable",
        session="0123abcd",
        optimizer_steps_before=(3, 0),
        gaps=((2, 3), (6, 9)),
        passed_over=((12, 20),),
        torn={"layers": ((1, 30),), "metrics": ((4, 4),)},
        dropped=7,
        stopped="RuntimeError: injected",
        repaired="2026-11-01T00:00:00+00:00",
        other={"of_a_newer_version": {"nested": [1, 2]}},
    )
    write_info(tmp_path, info)
    assert json.loads((tmp_path / "run.json").read_text()) == raw


def test_unknown_values_are_not_written(tmp_path: Path) -> None:
    write_info(tmp_path, RunInfo("x", ""))
    written = json.loads((tmp_path / "run.json").read_text())["recorder"]
    assert written == {"every": 1, "histograms_every": 0}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("every", "x"),
        ("every", 0),
        ("every", True),
        ("every", 1e30),
        ("histograms_every", -3),
        ("histograms_every", None),
        ("precision", "x"),
        ("optimizer_steps_before", 5),
        ("gaps", "ab"),
        ("gaps", [[1], [1, "x"], {"1": 2}, [1, 2, 3], 4]),
        ("passed_over", {"a": 1}),
        ("torn_layers", 3),
        ("dropped", "x"),
        ("dropped", [1]),
        ("stopped", None),
    ],
)
def test_a_value_of_the_wrong_kind_counts_as_absent(key: str, value: Any) -> None:
    assert RecordingInfo.from_json({key: value}) == RecordingInfo()


def test_counts_of_the_wrong_kind_are_zero() -> None:
    raw = {"optimizer_steps_before": ["x", 2.5, True, 4]}
    assert RecordingInfo.from_json(raw).optimizer_steps_before == (0, 0, 0, 4)


def test_ranges_of_missing_steps_are_joined_and_cut() -> None:
    info = RecordingInfo(gaps=((5, 7),))
    more = info.with_missing(gaps=[(8, 9), (1, 2)], passed_over=[(4, 4)], torn={"layers": [(3, 3)]})
    assert more.gaps == ((1, 2), (5, 9))
    assert set(more.known_missing) == {(1, 2), (5, 9), (4, 4), (3, 3)}
    cut = more.missing_up_to(6)
    assert cut.gaps == ((1, 2), (5, 6))
    assert more.missing_up_to(3).passed_over == ()
    assert more.missing_up_to(2).torn == {}
    assert replace(info, dropped=1).with_missing_of(more) == replace(more, dropped=1)


def test_a_resumed_run_has_the_new_options_and_the_old_gaps() -> None:
    old = RecordingInfo.from_json(FULL)
    new = RecordingInfo(every=2, statistics="cuda", precision=23, optimizer_steps_before=(8,))
    resumed = old.resumed_by(new)
    assert (resumed.every, resumed.statistics, resumed.precision) == (2, "cuda", 23)
    assert (resumed.session, resumed.dropped, resumed.other) == (old.session, 7, old.other)
    assert resumed.known_missing == old.known_missing
    assert resumed.stopped is None
    assert resumed.repaired is None
