"""Test the application: accepted hosts, served files, component ids, ports."""

from __future__ import annotations

import json
import pkgutil
import re
import socket
from importlib import import_module
from pathlib import Path

import pytest
from dash import Dash
from dash.development.base_component import Component

from trustlens.errors import UsageError
from trustlens.figures.ridgelines import canvas
from trustlens_dashboard import pages
from trustlens_dashboard.app import _listen, create_app, serve
from trustlens_dashboard.frame import ids as frame_ids
from trustlens_dashboard.frame.navigation import page_at

PAGES = [module.name for module in pkgutil.iter_modules(pages.__path__)]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Dash:
    return create_app(tmp_path_factory.mktemp("runs"))


def test_the_page_loads_nothing_from_other_hosts(app: Dash) -> None:
    page = app.server.test_client().get("/").text
    assert '<html lang="en">' in page
    assert not re.findall(r'(?:src|href)="(?:https?:)?//[^"]*"', page)
    for asset in ("callbacks.js", "trustlens.css", "icon.svg"):
        assert f"/assets/{asset}" in page


def test_the_canvas_script_and_style_are_served_unchanged(app: Dash) -> None:
    client = app.server.test_client()
    page = client.get("/").text
    [script] = re.findall(r'src="(/canvas\.js\?m=[0-9a-f]{12})"', page)
    [style] = re.findall(r'href="(/canvas\.css\?m=[0-9a-f]{12})"', page)
    for path, text, kind in (
        (script, canvas.script(), "text/javascript"),
        (style, canvas.style(), "text/css"),
    ):
        answer = client.get(path)
        assert (answer.text, answer.mimetype) == (text, kind)
        assert "max-age" in answer.headers["Cache-Control"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8050", 200),
        ("localhost:1234", 200),
        ("[::1]:8050", 200),
        ("evil.example", 400),
        ("127.0.0.1.evil.example:8050", 400),
    ],
)
def test_only_requests_for_local_hosts_are_answered(app: Dash, host: str, status: int) -> None:
    answer = app.server.test_client().get("/_dash-layout", headers={"Host": host})
    assert answer.status_code == status


@pytest.mark.parametrize("path", ["/_mcp", "/mcp", "/_dash-mcp"])
def test_there_is_no_mcp_endpoint(app: Dash, path: str) -> None:
    answer = app.server.test_client().post(path, json={})
    assert answer.status_code in (404, 405)


def test_every_component_id_is_unique_and_used(app: Dash) -> None:
    modules = [frame_ids, *(import_module(f"{pages.__name__}.{name}.ids") for name in PAGES)]
    named = [value for ids in modules for key, value in vars(ids).items() if key.isupper()]
    text = json.dumps([layout.to_plotly_json() for layout in app.validation_layout], default=vars)
    assert len(named) == len(set(named))
    missing = [name for name in named if f'"{name}"' not in text]
    assert not missing


def test_no_script_contains_a_component_id() -> None:
    named = {value for key, value in vars(frame_ids).items() if key.isupper()}
    for name in PAGES:
        ids = vars(import_module(f"{pages.__name__}.{name}.ids"))
        named |= {value for key, value in ids.items() if key.isupper()}
    assert named
    for path in Path(create_app.__code__.co_filename).with_name("assets").glob("*.js"):
        repeated = named & set(re.findall(r'"([^"]*)"', path.read_text(encoding="utf-8")))
        assert not repeated, path


@pytest.mark.parametrize("path", [*(page.path for page in pages.all_pages()), "/nowhere", None])
def test_each_path_has_a_page(path: str | None) -> None:
    shown, toolbar, quantity = page_at(pages.all_pages(), path)
    assert isinstance(shown, Component)
    hidden = {"display": "none"}
    assert (toolbar == hidden) == (path in ("/", "/nowhere", None))
    assert (quantity == hidden) == (path not in ("/ridgelines", "/layers"))


def test_an_unusable_port_or_host_is_a_usage_error(tmp_path: Path) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    with taken, pytest.raises(UsageError, match=r"port \d+ .*--port"):
        serve(tmp_path, port=taken.getsockname()[1])
    with pytest.raises(UsageError, match="70000 is not a valid port"):
        serve(tmp_path, port=70_000)
    with pytest.raises(UsageError, match=r"nowhere\.invalid.*--host"):
        serve(tmp_path, host="nowhere.invalid", port=0)
    with pytest.raises(UsageError, match="set it with --host"):
        _listen("", 0)  # the system would listen on all addresses
