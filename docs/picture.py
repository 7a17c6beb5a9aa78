"""Take the README's screenshots: the ridgelines page with two sample runs, in both themes.

make setup browser && .venv/bin/python docs/picture.py
"""

from __future__ import annotations

import shutil
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from playwright.sync_api import sync_playwright

from trustlens.cli.demo import recorded_runs
from trustlens_dashboard.app import serve
from trustlens_dashboard.library import Library
from trustlens_dashboard.selection import Selection

RUNS = ("adam-lr0.01", "lamb-lr0.01")
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
)


def main() -> None:
    """Serve the sample runs and save one screenshot per theme."""
    root = recorded_runs()
    found = {entry.path.name: entry.id for entry in Library(root).snapshot().entries}
    path = "/ridgelines" + Selection(*(found[name] for name in RUNS)).search()
    served: SimpleQueue[str] = SimpleQueue()
    Thread(
        target=serve, args=[root], kwargs={"port": 0, "announce": served.put}, daemon=True
    ).start()
    address = served.get().rstrip("/") + path
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=CHROMIUM_FLAGS
        )
        for theme in ("light", "dark"):
            context = browser.new_context(
                viewport={"width": 1280, "height": 900}, color_scheme=theme, device_scale_factor=1.5
            )
            page = context.new_page()
            page.goto(address)
            page.wait_for_function("document.querySelectorAll('.ridgelines-canvas').length === 2")
            page.wait_for_load_state("networkidle")
            picture = Path(__file__).with_name(f"ridgelines-{theme}.png")
            page.locator(".card").first.screenshot(path=picture)
            print(picture)
        browser.close()


if __name__ == "__main__":
    main()
