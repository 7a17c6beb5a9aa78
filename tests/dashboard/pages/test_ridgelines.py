"""Test the ridgelines page: payload, slider and table, against the run's own values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trustlens.figures.theme import THEMES
from trustlens.schema import QUANTITIES
from trustlens_dashboard.library import Library, Snapshot
from trustlens_dashboard.pages.ridgelines import view as page
from trustlens_dashboard.selection import Selection

Maker = Callable[..., Path]
LAMB = "trustlens.optim.lamb.Lamb"
NEW_SLIDER = page.Slider(0, 1)


@pytest.fixture
def pair(synthetic_run: Maker, tmp_path: Path) -> tuple[Snapshot, str]:
    """Return a snapshot of Adam with 60 steps and LAMB with 40, and the query that selects both."""
    synthetic_run("adam", steps=60, layers=12, seed=1)
    synthetic_run("lamb", steps=40, layers=12, seed=2, optimizer=LAMB)
    snapshot = Library(tmp_path).snapshot()
    a, b = (entry.id for entry in snapshot.entries)
    return snapshot, Selection(a, b).search()


def test_two_runs_share_axis_steps_and_heights(pair: tuple[Snapshot, str]) -> None:
    snapshot, search = pair
    sent = page.picture(snapshot, search, "auto", "robust", NEW_SLIDER)[0]
    assert (sent["steps"]["lo"], sent["steps"]["hi"]) == (1, 60)
    assert len({run["factor"] for run in sent["runs"]}) == 1
    assert [run["color"]["light"] for run in sent["runs"]] == [
        THEMES["light"].runs[key].line for key in ("blue", "red")
    ]
    assert sent["axis"]["lo"] < sent["axis"]["hi"]
    for tick in sent["axis"]["ticks"]:
        assert 0 <= tick["at"] <= 1
        low, high = sent["axis"]["lo"], sent["axis"]["hi"]
        assert low * (high / low) ** tick["at"] == pytest.approx(float(tick["label"]), rel=1e-6)


def test_the_payload_is_small(synthetic_run: Maker, tmp_path: Path) -> None:
    for name in ("one", "two"):
        synthetic_run(name, layers=8, steps=150)
    snapshot = Library(tmp_path).snapshot()
    search = Selection(*(entry.id for entry in snapshot.entries)).search()
    sent = json.dumps(page.picture(snapshot, search, "auto", "full", NEW_SLIDER)[0])
    assert len(sent) < 100_000  # two runs, 100 ridges of 160 buckets each


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("scale", ["auto", "log", "linear"])
def test_every_quantity_on_every_scale(
    pair: tuple[Snapshot, str], quantity: str, scale: str
) -> None:
    snapshot, search = pair
    selection = Selection.parse(search)
    address = Selection(selection.a, selection.b, quantity).search()
    for view in ("robust", "full"):
        result = page.picture(snapshot, address, scale, view, NEW_SLIDER)
        json.dumps(result[0], allow_nan=False)
        assert result[0] is not None


def test_a_slider_at_the_end_follows_and_one_in_the_middle_stays() -> None:
    steps = list(range(1, 101))
    assert page._step_to_show(page.Slider(0, 1), steps) == 100
    assert page._step_to_show(page.Slider(80, 80), steps) == 100
    assert page._step_to_show(page.Slider(40, 80), steps) == 40
    assert page._step_to_show(page.Slider(500, 900), steps) == 100  # another run
    assert page._step_to_show(page.Slider(41, 80), list(range(0, 101, 4))) == 40
    assert page._step_to_show(page.Slider(7, 9), []) == 0


def test_the_table_has_the_recorded_values(pair: tuple[Snapshot, str]) -> None:
    snapshot, search = pair
    summaries, columns, rows = page.numbers(snapshot, search, "auto", "robust", 25)
    adam, lamb = (run.matrix("trust_ratio", steps=[25]).iloc[0] for run in snapshot.chosen(
        *(entry.id for entry in snapshot.entries)))  # fmt: skip
    assert [row["value0"] for row in rows] == pytest.approx(adam.tolist())
    assert [row["value1"] for row in rows] == pytest.approx(lamb.tolist())
    assert [row["ratio"] for row in rows] == pytest.approx((lamb / adam).tolist())
    assert [row["layer"] for row in rows] == list(adam.index)
    assert columns[1]["headerName"] == "r · adam · step 25"
    assert "adam, step 25: median r" in summaries[0].children
    assert "over 12 layers." in summaries[0].children


def test_after_the_end_of_the_shorter_run_its_last_step_is_shown(
    pair: tuple[Snapshot, str],
) -> None:
    snapshot, search = pair
    _, columns, _ = page.numbers(snapshot, search, "auto", "robust", 60)
    assert [column["headerName"] for column in columns[1:3]] == [
        "r · adam · step 60",
        "r · lamb · step 40",
    ]


def test_runs_of_different_models_have_all_layers_in_the_table(
    synthetic_run: Maker, tmp_path: Path
) -> None:
    synthetic_run("one", layers=["shared", "only.one"], steps=2)
    synthetic_run("two", layers=["only.two", "shared"], steps=2)
    snapshot = Library(tmp_path).snapshot()
    search = Selection(*(entry.id for entry in snapshot.entries)).search()
    _, _, rows = page.numbers(snapshot, search, "auto", "robust", 2)
    by_layer = {row["layer"]: row for row in rows}
    assert list(by_layer) == ["shared", "only.one", "only.two"]
    assert by_layer["only.one"]["value1"] is None
    assert by_layer["only.one"]["ratio"] is None
    assert by_layer["shared"]["ratio"] is not None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"layers": 0, "steps": 4}, "This run has no layers."),
        ({"steps": 0, "metrics": {}}, "No step has been recorded yet."),
        ({"steps": 3, "values": {"trust_ratio": None}}, "Adam does not have it."),
        (
            {
                "steps": 3,
                "layers": 2,
                "values": {"trust_ratio": np.full((3, 2), np.nan), "nonfinite": np.ones((3, 2))},
            },
            "all are NaN or infinite.",
        ),
    ],
)
def test_a_run_without_values_has_a_message(
    synthetic_run: Maker, tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    synthetic_run("strange", **options)
    snapshot = Library(tmp_path).snapshot()
    search = Selection(snapshot.entries[0].id, "").search()
    sent, *_ = page.picture(snapshot, search, "auto", "robust", NEW_SLIDER)
    assert sentence in sent["runs"][0]["empty"]
    assert sentence in sent["runs"][0]["summary"]
    page.numbers(snapshot, search, "auto", "robust", 1)


def test_one_step_is_a_ridge(synthetic_run: Maker, tmp_path: Path) -> None:
    synthetic_run("short", steps=1)
    snapshot = Library(tmp_path).snapshot()
    search = Selection(snapshot.entries[0].id, "").search()
    sent, low, high, marks, value, disabled, *_ = page.picture(
        snapshot, search, "auto", "robust", NEW_SLIDER
    )
    assert (low, high, marks, value, disabled) == (1, 2, [{"value": 1}], 1, True)
    assert sent["runs"][0]["empty"] == ""


def test_without_a_run_or_with_a_damaged_table_there_is_a_message(
    synthetic_run: Maker, tmp_path: Path
) -> None:
    library = Library(tmp_path)
    assert page.picture(library.snapshot(), "", "auto", "robust", NEW_SLIDER)[0] is None
    path = synthetic_run("torn", steps=3)
    for file in (path / "layers").glob("*.parquet"):
        file.write_bytes(b"torn")
    snapshot = library.snapshot()
    search = Selection(snapshot.entries[0].id, "").search()
    *_, message = page.picture(snapshot, search, "auto", "robust", NEW_SLIDER)
    assert "damaged" in message.children
    assert "damaged" in page.numbers(snapshot, search, "auto", "robust", 1)[0].children
