"""Take the README's pictures: the dashboard's own page over the sample runs, in both themes.

python docs/picture.py
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from threading import Thread

from playwright.sync_api import sync_playwright
from werkzeug.serving import make_server

from dashboard.app import create_app
from dashboard.library import Library
from dashboard.selection import Selection
from trustlens.cli import recorded_runs

RUNS = ("adam-lr0.01", "lamb-lr0.01")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")


def main() -> None:
    """Serve the sample runs and take one picture a theme."""
    root = recorded_runs()
    found = {entry.path.name: entry.id for entry in Library(root).entries()}
    address = "/ridgelines" + Selection(*(found[name] for name in RUNS)).search()
    server = make_server("127.0.0.1", 0, create_app(root).server, threaded=True)
    Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
        for theme in ("light", "dark"):
            context = browser.new_context(
                viewport={"width": 1280, "height": 900}, color_scheme=theme, device_scale_factor=1.5
            )
            page = context.new_page()
            page.goto(f"http://127.0.0.1:{server.port}{address}")
            page.wait_for_function("document.querySelectorAll('.ridgelines-canvas').length === 2")
            page.wait_for_load_state("networkidle")
            path = Path(__file__).with_name(f"ridgelines-{theme}.png")
            page.locator(".card").first.screenshot(path=path)
            print(path, file=sys.stderr)
        browser.close()
    server.shutdown()


if __name__ == "__main__":
    main()
