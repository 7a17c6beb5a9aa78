"""Processes to be killed: forked from a warm one that has imported torch and started no threads."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LONG = 60.0
"""Seconds after which a child that should have said something counts as stuck."""

needs_forks = pytest.mark.skipif(
    sys.platform == "win32", reason="no process can be forked or killed with SIGKILL here"
)


class Child:
    """A process that runs ``work(tell, *arguments)``; what it tells can be read here.

    Its stderr goes to a file: whatever a library may have to say about how it ended.
    """

    def __init__(self, errors: Path, work: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["recovery.warm"])
        self.errors = errors
        self._reports, end = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_run, args=(end, errors, work, arguments), daemon=True
        )
        self._process.start()
        end.close()

    def told(self, seconds: float = LONG) -> tuple[Any, ...] | None:
        """The next that it tells; None once it has ended, or if it does not within that time."""
        if not self._reports.poll(max(seconds, 0)):
            return None
        try:
            return self._reports.recv()
        except EOFError:
            return None

    def kill(self) -> list[tuple[Any, ...]]:
        """Kill it; return what it had told before."""
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(self._process.pid, signal.SIGKILL)
        return self.ended()

    def ended(self) -> list[tuple[Any, ...]]:
        """Wait for its end; return what else it told."""
        rest: list[tuple[Any, ...]] = []
        with contextlib.suppress(EOFError):
            while self._reports.poll(LONG):
                rest.append(self._reports.recv())
        self._process.join(LONG)
        assert self._process.exitcode is not None, "it is stuck"
        self.status = self._process.exitcode
        self._process.close()
        self._reports.close()
        return rest

    def result(self) -> tuple[Any, ...]:
        """Wait for the end of one that is not killed; return what it told last."""
        rest = self.ended()
        assert self.status == 0, self.errors.read_text()
        return rest[-1]


def stand_still() -> None:
    """Do nothing any more, until this process is killed."""
    while True:
        time.sleep(LONG)


def _run(end: Any, errors: Path, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    # Small enough that the pipe takes each whole, whichever thread it comes from.
    work(lambda *what: end.send(what), *arguments)
