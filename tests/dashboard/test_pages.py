"""Test all pages: each folder is a page, and no run causes an error on a page."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plotly.utils import PlotlyJSONEncoder

from trustlens.figures.theme import THEMES
from trustlens_dashboard import pages
from trustlens_dashboard.app import create_app
from trustlens_dashboard.frame import live
from trustlens_dashboard.library import Library, Snapshot
from trustlens_dashboard.pages.layers import view as layers_page
from trustlens_dashboard.pages.runs import table as run_table
from trustlens_dashboard.pages.runs import view as runs_page
from trustlens_dashboard.pages.smoothing import view as smoothing_page
from trustlens_dashboard.pages.training import view as training_page
from trustlens_dashboard.selection import Selection

Maker = Callable[..., Path]


@pytest.fixture
def awkward(synthetic_run: Maker, tmp_path: Path) -> tuple[Snapshot, list[str]]:
    """Return a snapshot of empty, damaged and hostile runs, and a query that selects each."""
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
    snapshot = Library(tmp_path).snapshot()
    return snapshot, ["", *(Selection(e.id, "").search() for e in snapshot.entries)]


def assert_valid_json(*values: Any) -> None:
    """Fail if the values cannot be encoded as JSON, which has no NaN."""
    json.loads(json.dumps(values, cls=PlotlyJSONEncoder), parse_constant=pytest.fail)


@pytest.mark.parametrize("theme", THEMES)
def test_no_page_fails_for_an_awkward_run(awkward: tuple[Snapshot, list[str]], theme: Any) -> None:
    snapshot, searches = awkward
    for search in searches:
        assert_valid_json(runs_page.update_rows(snapshot, None)[0], run_table.version(snapshot))
        assert_valid_json(live.updates(snapshot, search, None, None)[:2])
        assert_valid_json(layers_page.overview(snapshot, search, "a")[1:])
        assert_valid_json(layers_page.heatmap_figure(snapshot, search, "b", theme))
        _, layer = layers_page.layer_options(snapshot, search, None)
        assert_valid_json(layers_page.over_time(snapshot, search, layer, theme))
        for scale in ("auto", "log"):
            assert_valid_json(training_page.picture(
                snapshot, search, more=None, names=None, scale=scale, theme=theme))  # fmt: skip
        for option in smoothing_page.series_options(snapshot, search):
            assert_valid_json(smoothing_page.smoothed(snapshot, search, betas=["0.9"],
                     series=option["value"], debiased="both", theme=theme))  # fmt: skip
        for recorded in ("none", "a", "b"):
            assert_valid_json(smoothing_page.factors(
                snapshot, search, betas=[], recorded=recorded, theme=theme))  # fmt: skip


ADDED = {
    "__init__.py": """
        from trustlens_dashboard.page import Page
        from trustlens_dashboard.pages.added import callbacks, layout

        PAGE = Page(
            order=99, path="/added", title="Added",
            layout=layout.layout, register=callbacks.register, uses_quantity=True,
        )
    """,
    "layout.py": """
        from dash import html

        def layout():
            return html.Div(id="added-words")
    """,
    "callbacks.py": """
        from dash import Input, Output

        def register(app, library):
            @app.callback(Output("added-words", "children"), Input("url", "search"))
            def words(search):
                return f"{len(library.snapshot().entries)} runs at {search}"
    """,
}


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Add a folder with a page to the package of pages."""
    folder = tmp_path / "pages" / "added"
    folder.mkdir(parents=True)
    for name, text in ADDED.items():
        (folder / name).write_text(textwrap.dedent(text))
    known = set(sys.modules)
    monkeypatch.setattr(pages, "__path__", [*pages.__path__, str(folder.parent)])
    for name in ("added", "added.layout", "added.callbacks"):
        monkeypatch.setitem(sys.modules, f"trustlens_dashboard.pages.{name}", None)
        del sys.modules[f"trustlens_dashboard.pages.{name}"]
    assert known == set(sys.modules)


@pytest.mark.usefixtures("added")
def test_a_page_is_added_by_adding_its_folder(synthetic_run: Maker, tmp_path: Path) -> None:
    synthetic_run("run", steps=1)
    app = create_app(tmp_path)
    client = app.server.test_client()

    def call(output: str, prop: str, value: str) -> Any:
        """Return the response of the callback with these outputs."""
        outputs = [part.rsplit(".", 1) for part in output.strip(".").split("...")]
        sent = [{"id": name, "property": key} for name, key in outputs]
        body = {
            "output": output,
            "outputs": sent if output.startswith("..") else sent[0],
            "inputs": [{"id": "url", "property": prop, "value": value}],
            "changedPropIds": [f"url.{prop}"],
        }
        return client.post("/_dash-update-component", json=body).json["response"]

    links = json.dumps(call("navigation.children", "search", "?q=r"))
    assert '"href": "/added?q=r"' in links
    assert links.index("/smoothing") < links.index("/added")
    shown = call("..page.children...toolbar.style...quantity-box.style..", "pathname", "/added")
    assert shown["page"]["children"]["props"]["id"] == "added-words"
    assert (shown["toolbar"]["style"], shown["quantity-box"]["style"]) == ({}, {})
    answer = call("added-words.children", "search", "?q=r")
    assert answer == {"added-words": {"children": "1 runs at ?q=r"}}
    layout = json.loads(client.get("/_dash-layout").text)
    assert '"/added": "Added"' in json.dumps(layout)


def test_the_pages_differ_in_path_title_and_order() -> None:
    found = pages.all_pages()
    assert [page.path for page in found] == [
        "/", "/ridgelines", "/training", "/layers", "/smoothing",
    ]  # fmt: skip
    for names in ([page.title for page in found], [page.order for page in found]):
        assert len(set(names)) == len(found)
