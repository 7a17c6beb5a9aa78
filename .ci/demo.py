"""Check `make demo` as a new user runs it: it serves a page, and ends cleanly on Ctrl+C.

Usage: python3 .ci/demo.py
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request

SECONDS_TO_SERVE = 60
SECONDS_TO_END = 20


def main() -> str | None:
    """Return an error message, or None."""
    # In a new process group: Ctrl+C in a terminal signals the whole group, as os.killpg below.
    demo = subprocess.Popen(
        ["make", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "BROWSER": "true", "PYTHONUNBUFFERED": "1"},
    )
    output: list[str] = []
    reader = threading.Thread(target=_copy, args=[demo, output])
    reader.start()
    try:
        return _check_page(demo, output) or _check_end(demo, output)
    finally:
        if demo.poll() is None or _is_group_alive(demo.pid):
            os.killpg(demo.pid, signal.SIGKILL)
        reader.join()


def _copy(demo: subprocess.Popen[str], output: list[str]) -> None:
    for line in demo.stdout or ():
        output.append(line)
        sys.stdout.write(line)
        sys.stdout.flush()


def _check_page(demo: subprocess.Popen[str], output: list[str]) -> str | None:
    deadline = time.monotonic() + SECONDS_TO_SERVE
    while time.monotonic() < deadline and demo.poll() is None:
        address = re.search(r"http://127\.0\.0\.1:\d+", "".join(output))
        if address is None:
            time.sleep(0.2)
            continue
        with urllib.request.urlopen(address[0], timeout=10) as page:
            text = page.read().decode()
        return None if "trustlens" in text else f"{address[0]} served a wrong page: {text[:200]}"
    return "make demo served no page"


def _check_end(demo: subprocess.Popen[str], output: list[str]) -> str | None:
    time.sleep(5)  # let it train and write runs
    if demo.poll() is not None:
        return "make demo ended before Ctrl+C"
    os.killpg(demo.pid, signal.SIGINT)
    deadline = time.monotonic() + SECONDS_TO_END
    while _is_group_alive(demo.pid) and time.monotonic() < deadline:
        demo.poll()
        time.sleep(0.2)
    if _is_group_alive(demo.pid):
        return f"make demo was still running {SECONDS_TO_END} s after Ctrl+C"
    return "make demo ended with a traceback" if "Traceback" in "".join(output) else None


def _is_group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
