"""Fixtures: a dashboard server with synthetic runs, and a browser that blocks other hosts."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    Page,
    Request,
    Route,
    sync_playwright,
)

from tests.support.runs import make_run, synthetic_values

LAMB = "trustlens.optim.lamb.Lamb"
LAYERS = [
    f"blocks.{block}.{part}"
    for block in range(6)
    for part in ("attn.qkv.weight", "attn.proj.weight", "mlp.fc.weight", "mlp.fc.bias")
]
# No page needs WebGL. Without a GPU, software rendering is faster than an emulated GPU.
CHROMIUM = (
    "--no-sandbox", "--disable-gpu", "--disable-quic",
    "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
)  # fmt: skip


def ratios(seed: int, steps: int) -> np.ndarray:
    """Return realistic trust ratios (steps, layers): three clusters of layers, drifting slowly."""
    rng = np.random.default_rng(seed)
    level = rng.choice(np.log([0.06, 0.25, 4.0]), len(LAYERS), p=[0.5, 0.3, 0.2])
    level = level + rng.normal(0, 0.25, len(LAYERS))
    early = 1.2 * np.exp(-np.arange(steps) / (steps / 8))[:, None] * (level < 0)
    return np.minimum(np.exp(level + early + rng.normal(0, 0.01, (steps, 1)).cumsum(axis=0)), 10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    make_run(
        root / "adam", layers=LAYERS, steps=300, seed=1, values={"trust_ratio": ratios(1, 300)}
    )
    weight = synthetic_values(300, len(LAYERS), 2)["weight_norm"]
    weight[200:, 9] *= np.exp(np.arange(100) / 8)
    bad = np.zeros(weight.shape)
    bad[280:, 9] = 7
    weight[280:, 9] = np.nan
    make_run(
        root / "lamb", layers=LAYERS, steps=300, seed=2, optimizer=LAMB,
        values={"trust_ratio": ratios(2, 300), "weight_norm": weight, "nonfinite": bad},
    )  # fmt: skip
    make_run(root / "zero-steps", steps=0, metrics={})
    make_run(root / "no-layers", layers=0, steps=3, optimizer="torch.optim.sgd.SGD")
    (root / "damaged").mkdir()
    (root / "damaged" / "run.json").write_text("{")
    return root


class Server:
    """A process that serves the dashboard of a folder."""

    def __init__(self, root: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        code = (
            "import sys; from pathlib import Path; from trustlens_dashboard.app import serve; "
            "serve(Path(sys.argv[1]), port=int(sys.argv[2]))"
        )
        command = [sys.executable, "-W", "error", "-c", code, str(root), str(port)]
        self.process = subprocess.Popen(command)
        self.url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                time.sleep(0.1)
            else:
                return
        pytest.fail("the dashboard did not start")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=10)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    yield server
    assert server.stop() == 0


@pytest.fixture
def serve() -> Iterator[Callable[[Path], Server]]:
    """Return a function that serves another folder; the process must exit with status 0."""
    servers: list[Server] = []

    def start(root: Path) -> Server:
        servers.append(Server(root))
        return servers[-1]

    yield start
    assert [server.stop() for server in servers] == [0] * len(servers)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("Chromium is not installed; `make browser` installs it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def context(browser: Browser) -> Callable[[Any], BrowserContext]:
    """Return a function with one context per colour scheme, so that scripts are compiled once."""

    @cache
    def make(scheme: Any) -> BrowserContext:
        return browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme=scheme)

    return make


@pytest.fixture
def visit(
    context: Callable[[Any], BrowserContext], server: Server
) -> Iterator[Callable[..., Page]]:
    """Return a function that opens a page.

    Fail on messages in the console, uncaught errors and requests to other hosts.
    """
    problems: list[str] = []
    pages: list[Page] = []

    def guard(route: Route, request: Request) -> None:
        if request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            route.continue_()
        else:
            problems.append(f"request to {request.url}")
            route.abort()

    def open_page(path: str, scheme: Any = "light", url: str = "") -> Page:
        page = context(scheme).new_page()
        pages.append(page)
        page.set_default_timeout(15_000)
        page.route("**/*", guard)
        page.on(
            "console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto((url or server.url) + path)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert problems == []
