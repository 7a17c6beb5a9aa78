"""The other pages, and the frame around them: what their functions return."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dash import no_update
from plotly.utils import PlotlyJSONEncoder

from trustlens.analysis import run as run_module
from trustlens.figures.theme import THEMES
from trustlens.store.reader import fingerprint
from trustlens_dashboard.frame import navigation
from trustlens_dashboard.library import Library
from trustlens_dashboard.pages.layers import view as layers_page
from trustlens_dashboard.pages.runs import table as run_table
from trustlens_dashboard.pages.runs import view as runs_page
from trustlens_dashboard.pages.smoothing import view as smoothing_page
from trustlens_dashboard.pages.training import view as training_page
from trustlens_dashboard.selection import Selection

Maker = Callable[..., Path]
LAMB = "trustlens.optim.lamb.Lamb"


def library_of(tmp_path: Path) -> tuple[Library, str]:
    library = Library(tmp_path)
    chosen = [entry.id for entry in library.entries() if entry.run is not None][:2]
    return library, Selection(*chosen, *[""] * (2 - len(chosen))).search()


@pytest.fixture
def strange(synthetic_run: Maker, tmp_path: Path) -> tuple[Library, list[str]]:
    """Every kind of run that has next to nothing in it, and an address for each."""
    nan = np.full((3, 2), np.nan)
    synthetic_run("no-layers", layers=0, steps=4)
    synthetic_run("no-steps", steps=0, metrics={})
    synthetic_run("one-step", steps=1)
    synthetic_run("nothing-logged", steps=3, metrics={})
    synthetic_run("no-betas", steps=3, optimizer="torch.optim.sgd.SGD",
                  values={"debias1": None, "debias2": None})  # fmt: skip
    lost = {"trust_ratio": nan, "weight_norm": nan, "nonfinite": np.ones((3, 2))}
    synthetic_run("all-nan", layers=2, steps=3, metrics={"loss": np.full(3, np.nan)}, values=lost)
    synthetic_run("<b>html</b> $x$ %{y}", layers=["<i>layer</i>", "$a$"], steps=20)
    torn = synthetic_run("torn", steps=3)
    for file in torn.rglob("*.parquet"):
        file.write_bytes(b"torn")
    (synthetic_run("torn-live", steps=3, close=False) / "steps").mkdir(exist_ok=True)
    (tmp_path / "torn-live" / "steps" / "000099.parquet").write_bytes(b"torn")
    (tmp_path / "no-run").mkdir()
    (tmp_path / "no-run" / "run.json").write_text("[]")
    library = Library(tmp_path)
    return library, ["", *(Selection(e.id, "").search() for e in library.entries())]


def sendable(*values: Any) -> None:
    """Fails if a browser could not be sent the values, NaN included."""
    json.loads(json.dumps(values, cls=PlotlyJSONEncoder), parse_constant=pytest.fail)


@pytest.mark.parametrize("theme", THEMES)
def test_strange_runs_break_no_page(strange: tuple[Library, list[str]], theme: Any) -> None:
    library, searches = strange
    for search in searches:
        sendable(runs_page.fill(library, None)[0], run_table.version(library))
        sendable(navigation.news(library, search, None, None)[:2])
        sendable(layers_page.overview(library, search, "a")[1:])
        sendable(layers_page.picture(library, search, "b", theme))
        _, layer = layers_page.layer_options(library, search, None)
        sendable(layers_page.over_time(library, search, layer, theme))
        for scale in ("auto", "log"):
            sendable(training_page.picture(
                library, search, more=None, names=None, scale=scale, theme=theme))  # fmt: skip
        for option in smoothing_page.series_options(library, search):
            sendable(smoothing_page.smoothed(library, search, betas=["0.9"],
                     series=option["value"], debiased="both", theme=theme))  # fmt: skip
        for recorded in ("none", "a", "b"):
            sendable(smoothing_page.factors(
                library, search, betas=[], recorded=recorded, theme=theme))  # fmt: skip


def test_the_list_has_a_row_for_each_run(synthetic_run: Maker, tmp_path: Path) -> None:
    weight = np.full((60, 8), 2.0)
    weight[40:, 3] *= np.exp(np.arange(20))
    metrics = {"loss": np.linspace(2, 0.5, 60), "train/accuracy": np.linspace(0, 0.9, 60)}
    synthetic_run("adam", steps=60, metrics=metrics, lr=0.02)
    synthetic_run("lamb", steps=60, optimizer=LAMB, values={"weight_norm": weight}, close=False)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.json").write_text("{")
    adam, lamb, torn = run_table.rows(Library(tmp_path))
    assert {key: adam[key] for key in ("name", "optimizer", "lr", "layers", "steps", "status")} == {
        "name": "adam", "optimizer": "Adam", "lr": 0.02, "layers": 8, "steps": 60,
        "status": "closed",
    }  # fmt: skip
    assert (adam["loss"], adam["accuracy"]) == (0.5, 0.9)
    assert lamb["status"] == "recording"
    assert "block1.bias" in lamb["verdict"]
    assert lamb["findings"] > 0
    assert torn["status"] == "damaged"
    assert "run.json" in torn["verdict"]


def test_a_run_that_the_system_does_not_let_it_read_leaves_the_others_in_the_list(
    synthetic_run: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(directory: Path) -> str:
        if directory.name == "bad":
            raise PermissionError(13, "Permission denied", "bad/layers")
        return fingerprint(directory)

    synthetic_run("bad")
    synthetic_run("good")
    monkeypatch.setattr(run_module, "fingerprint", refusing)
    (bad, good), version, *_ = runs_page.fill(Library(tmp_path), None)
    assert (bad["status"], good["status"]) == ("damaged", "closed")
    assert bad["verdict"] == "[Errno 13] Permission denied: 'bad/layers'"
    assert [len(row) for row in version] == [2, 3]


def test_an_unchanged_list_is_not_sent_again(synthetic_run: Maker, tmp_path: Path) -> None:
    library = Library(tmp_path)
    rows, version, words, style = runs_page.fill(library, None)
    assert (rows, style) == ([], {"display": "none"})
    assert "trustlens.record(" in str(words)
    synthetic_run("first", steps=2)
    rows, version, words, style = runs_page.fill(library, version)
    assert ([row["name"] for row in rows], words, style) == (["first"], None, {})
    assert runs_page.fill(library, json.loads(json.dumps(version))) == (no_update,) * 4


def test_ticking_rows_chooses_the_runs() -> None:
    def tick(search: str, *names: str) -> Any:
        return runs_page.tick(search, [{"id": name} for name in names])

    start = Selection("x", "y", "grad_norm").search()
    assert tick(start, "x", "y") is no_update
    assert Selection.parse(tick(start, "x")) == Selection("x", "", "grad_norm")
    assert Selection.parse(tick(start, "y")) == Selection("y", "", "grad_norm")
    assert Selection.parse(tick(start, "x", "y", "z")) == Selection("y", "z", "grad_norm")
    assert tick(start) is no_update
    assert runs_page.tick(start, {"ids": ["x", "y"]}) is no_update


def test_the_toolbar_and_the_address_agree(synthetic_run: Maker, tmp_path: Path) -> None:
    synthetic_run("adam", steps=2)
    synthetic_run("lamb", steps=2, optimizer=LAMB)
    library = Library(tmp_path)
    search, a, options, b, *_ = navigation.synchronise(library, "", None)
    assert Selection.parse(search) == Selection(a, b)
    assert [option["label"] for option in options] == [
        "adam · Adam, lr 0.01",
        "lamb · LAMB, lr 0.01",
    ]
    again = navigation.synchronise(library, search, None)
    assert again[0] is no_update
    changed = navigation.synchronise(library, search, Selection(b, "", "grad_norm"))
    assert Selection.parse(changed[0]) == Selection(b, "", "grad_norm")
    assert (changed[1], changed[3], changed[5], changed[6]) == (b, None, "grad_norm", "")
    assert changed[7] == {"background": "var(--tl-run-red)"}


def test_news_only_when_there_is_something_new(synthetic_run: Maker, tmp_path: Path) -> None:
    synthetic_run("live", steps=5, close=False)
    library, search = library_of(tmp_path)
    listing, cursor, words = navigation.news(library, search, None, None)
    assert "live: recording, step 5" in str(words)
    listing, cursor = json.loads(json.dumps([listing, cursor]))
    assert navigation.news(library, search, listing, cursor) == (no_update,) * 3
    synthetic_run("other", steps=1)
    news = navigation.news(library, search, listing, cursor)
    assert [row[1] for row in news[0]] == ["live", "other"]
    assert news[1] is no_update


def test_the_layers_table_holds_the_last_step(synthetic_run: Maker, tmp_path: Path) -> None:
    weight = np.full((60, 4), 2.0)
    weight[40:, 2] *= np.exp(np.arange(20))
    path = synthetic_run("run", layers=4, steps=60, values={"weight_norm": weight})
    library, search = library_of(tmp_path)
    words, findings, style, title, rows = layers_page.overview(library, search, "a")
    assert "block1.weight" in words.children
    assert findings[0]["layer"] == "block1.weight"
    assert style == {}
    assert title == f"The layers of {path.name} at step 60"
    assert [row["weight_norm"] for row in rows] == pytest.approx(weight[-1].tolist())
    assert [bool(row["finding"]) for row in rows] == [False, False, True, False]
    assert layers_page.layer_options(library, search, None)[1] == "block1.weight"


def test_a_click_names_its_layer(synthetic_run: Maker, tmp_path: Path) -> None:
    synthetic_run("run", layers=["<a>", "b$c"], steps=3)
    library, search = library_of(tmp_path)
    figure, _ = layers_page.picture(library, search, "a", "light")
    for shown, name in zip(figure.data[0].y, ["<a>", "b$c"], strict=True):
        event = {"points": [{"y": shown}]}
        assert layers_page.clicked(library, search, event) == name
    assert layers_page.clicked(library, search, {"rowId": "b$c"}) == "b$c"
    assert layers_page.clicked(library, search, None) is None
    assert layers_page.layer_options(library, search, "gone")[1] == "<a>"


def test_training_shows_chosen_runs_and_names(synthetic_run: Maker, tmp_path: Path) -> None:
    for name in ("one", "three", "two"):
        synthetic_run(name, steps=9)
    library = Library(tmp_path)
    ids = [entry.id for entry in library.entries()]
    search = Selection(ids[0], ids[1]).search()
    assert [o["value"] for o in training_page.options(library, search)] == [ids[2]]
    figure, _, names, rows = training_page.picture(
        library, search, more=[ids[2], ids[0]], names=["loss", "gone"], scale="auto", theme="light"
    )
    assert names == ["loss", "test_accuracy"]
    lines = [trace for trace in figure.data if trace.mode and "lines" in trace.mode]
    assert len(lines) == 3
    assert len(rows) == 6
    assert rows[0]["last"] == pytest.approx(2.3 * np.exp(-9 / 20))


def test_smoothing_takes_the_runs_own_loss(synthetic_run: Maker, tmp_path: Path) -> None:
    synthetic_run("run", steps=30)
    library, search = library_of(tmp_path)
    options = smoothing_page.series_options(library, search)
    assert [option["value"] for option in options] == ["example", "a:loss", "a:test_accuracy"]
    figure, _ = smoothing_page.smoothed(
        library, search, betas=["0.9"], series="a:loss", debiased="with", theme="light"
    )
    np.testing.assert_allclose(figure.data[0].y, 2.3 * np.exp(-np.arange(1, 31) / 20))


def test_zoom_is_kept_until_the_view_changes(synthetic_run: Maker, tmp_path: Path) -> None:
    synthetic_run("run", steps=30)
    library, search = library_of(tmp_path)

    def revision(**options: Any) -> str:
        chosen = {"more": None, "names": None, "scale": "auto", "theme": "light", **options}
        return training_page.picture(library, search, **chosen)[0].layout.uirevision

    assert revision() == revision(theme="dark")
    assert revision() != revision(names=["loss"])
