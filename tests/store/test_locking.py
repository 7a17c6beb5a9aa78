"""One writer per run, by a lock that needs no cleaning up."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import run_info
from trustlens.errors import RunError, UsageError
from trustlens.store.locking import RunLock
from trustlens.store.run_info import RunInfo
from trustlens.store.writer import RunWriter

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX locks")

HOLD = """
    import sys, time
    from pathlib import Path
    from trustlens.store.locking import RunLock
    lock = RunLock(Path(sys.argv[1]))
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def held_elsewhere(directory: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), directory], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def resumed(directory: Path) -> RunWriter:
    return RunWriter(directory, run_info(), resume=lambda old: old)


def test_a_second_writer_in_the_same_process_is_refused(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, run_info())
    for _ in range(2):  # a refused writer does not affect the lock
        with pytest.raises(UsageError, match="that this process is recording; close that recorder"):
            resumed(tmp_path / ".." / tmp_path.name)
    writer.close(writer.info)
    assert not (tmp_path / ".lock").exists()
    resumed(tmp_path).close(writer.info)


@posix
def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path) as process:
        with pytest.raises(UsageError, match=rf"that process {process.pid} on .+ is recording"):
            RunLock(tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / ".lock").exists()
    lock = RunLock(tmp_path)
    lock.release()
    lock.release()
    assert not (tmp_path / ".lock").exists()


@posix
def test_a_forked_process_neither_has_nor_releases_the_lock(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    child = os.fork()
    if child == 0:
        try:
            RunLock(tmp_path)
        except UsageError:
            lock.release()
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert (tmp_path / ".lock").exists()
    code = textwrap.dedent(HOLD).replace("time.sleep(60)", "")
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, check=False)
    assert f"process {os.getpid()} on" in done.stderr.decode()
    lock.release()


def test_a_writer_that_fails_to_open_leaves_no_lock(tmp_path: Path) -> None:
    def refuse(_: RunInfo) -> RunInfo:
        raise UsageError("injected")

    writer = RunWriter(tmp_path, run_info())
    writer.close(writer.info)
    with pytest.raises(UsageError, match="already holds a run"):
        RunWriter(tmp_path, run_info())
    with pytest.raises(UsageError, match="injected"):
        RunWriter(tmp_path, run_info(), resume=refuse)
    (tmp_path / "run.json").write_text("")
    with pytest.raises(RunError):
        resumed(tmp_path)
    assert not (tmp_path / ".lock").exists()


def test_a_garbage_collected_writer_releases_the_lock(tmp_path: Path) -> None:
    RunWriter(tmp_path, run_info())
    RunLock(tmp_path).release()


@posix
def test_a_lock_file_that_was_removed_before_locking_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder ends after we opened the lock file and before we locked it."""
    import fcntl

    lockf, calls = fcntl.lockf, []

    def remove_then_lock(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 1:
            (tmp_path / ".lock").unlink()
        lockf(*arguments)

    monkeypatch.setattr(fcntl, "lockf", remove_then_lock)
    lock = RunLock(tmp_path)
    assert len(calls) == 2
    assert (tmp_path / ".lock").exists()
    lock.release()


@posix
def test_recording_works_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    lock = RunLock(tmp_path)
    assert not (tmp_path / ".lock").exists()
    lock.check()  # without locks, the check passes
    with pytest.raises(UsageError, match="this process"):
        RunLock(tmp_path)
    lock.release()


@posix
@pytest.mark.parametrize("kind", ["a link", "a link to nothing", "a pipe", "a folder"])
def test_a_lock_file_that_is_not_a_regular_file_is_neither_locked_nor_written(
    tmp_path: Path, kind: str
) -> None:
    run, precious, path = tmp_path / "run", tmp_path / "precious", tmp_path / "run" / ".lock"
    run.mkdir()
    precious.write_text("precious")
    make = {"a pipe": lambda: os.mkfifo(path), "a folder": path.mkdir}
    target = precious if kind == "a link" else tmp_path / "nothing"
    make.get(kind, lambda: path.symlink_to(target))()
    what = "a symbolic link" if "link" in kind else "not a regular file"
    with pytest.raises(UsageError, match=rf"\.lock' is {what}; .+; remove it"):
        RunWriter(run, run_info())
    assert precious.read_text() == "precious"
    assert not (tmp_path / "nothing").exists()
    assert [entry.name for entry in run.iterdir()] == [".lock"]


@posix
def test_an_interrupt_while_locking_releases_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    lockf = fcntl.lockf

    def interrupted(*arguments: Any) -> None:
        lockf(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "lockf", interrupted)
        with pytest.raises(KeyboardInterrupt):
            RunLock(tmp_path)
    with held_elsewhere(tmp_path):
        pass


@posix
def test_a_full_disk_while_opening_releases_the_lock(tmp_path: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(UsageError, match="cannot be written"):
            RunWriter(tmp_path, run_info())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with held_elsewhere(tmp_path):
        pass
