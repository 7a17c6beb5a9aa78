"""Processes to be killed, forked from a process that has imported torch and started no threads."""

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
"""Seconds without an expected message after which a child counts as stuck."""

needs_forks = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")


class Child:
    """A process that runs ``work(send, *arguments)``, and sends messages by calling ``send``.

    Its stderr goes to the file ``errors``.
    """

    def __init__(self, errors: Path, work: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.support.warm"])
        self.errors = errors
        self._messages, sender = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_run, args=(sender, errors, work, arguments), daemon=True
        )
        with pytest.MonkeyPatch.context() as patch:
            # The process that forks ignores sys.path (Python 3.11), and an error of its preload.
            patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
            self._process.start()
        sender.close()

    def receive(self, seconds: float = LONG) -> tuple[Any, ...] | None:
        """Return the next message; None if the process ended, or sends none within that time."""
        if not self._messages.poll(max(seconds, 0)):
            return None
        try:
            return self._messages.recv()
        except EOFError:
            return None

    def kill(self) -> list[tuple[Any, ...]]:
        """Kill the process; return the remaining messages."""
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(self._process.pid, signal.SIGKILL)
        return self.wait()

    def wait(self) -> list[tuple[Any, ...]]:
        """Wait for the process to end; return the remaining messages."""
        rest: list[tuple[Any, ...]] = []
        with contextlib.suppress(EOFError):
            while self._messages.poll(LONG):
                rest.append(self._messages.recv())
        self._process.join(LONG)
        assert self._process.exitcode is not None, "the process is stuck"
        self.status = self._process.exitcode
        self._process.close()
        self._messages.close()
        return rest

    def result(self) -> tuple[Any, ...]:
        """Wait for a process that is not killed; return its last message."""
        rest = self.wait()
        assert self.status == 0, self.errors.read_text()
        return rest[-1]


def sleep_until_killed() -> None:
    """Sleep until this process is killed."""
    while True:
        time.sleep(LONG)


def _run(sender: Any, errors: Path, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    # Messages are small enough for the pipe to send each atomically, from any thread.
    work(lambda *message: sender.send(message), *arguments)
