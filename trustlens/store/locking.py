"""One writer per run: a file lock that the system releases when the process ends."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
import weakref
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Lock
from typing import Final

from trustlens.errors import UsageError
from trustlens.store.layout import LOCK_FILE
from trustlens.store.location import not_plain

if sys.platform != "win32":
    import fcntl

_REFUSED: Final = (errno.EACCES, errno.EAGAIN)
"""The errors that lockf reports if another process holds the lock. Any other error means that the
file system does not support locks."""

_HELD: Final[dict[tuple[str, int], object]] = {}
"""The locks that this process holds. A key is the locked directory and the process id. The id is
needed because a forked process inherits this dict, but not the locks."""

_GUARD: Final = Lock()
"""Held while a lock is added to `_HELD`, and while :func:`is_held` has a lock file open. So no
thread of this process can take a lock while that file is open."""

_FLOCK: Final = "hhqqi"  # the format of Linux's struct flock
_TEXT_BYTES: Final = 1024  # maximum size of a lock file's text


class RunLock:
    """A lock on a run's directory, held by the one process that writes the run.

    Creating an instance takes the lock; :meth:`release` releases it. It is a POSIX record lock: a
    forked process does not inherit it, and the system releases it when the process ends. Windows
    and some network file systems have no POSIX locks. There, the lock excludes only other writers
    in the same process.

    Raises
    ------
    UsageError
        If another writer holds the lock.
    OSError
        If the directory cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        key, mine = (os.path.realpath(directory), os.getpid()), object()
        # Check this process first: if it holds the lock already, opening the lock file again and
        # closing it would release that lock.
        with _GUARD:
            is_taken = _HELD.setdefault(key, mine) is not mine
        if is_taken:
            raise _already_recorded(directory, "this process")
        try:
            descriptor = _open_and_lock(directory / LOCK_FILE)
        except BaseException:
            del _HELD[key]
            raise
        self._directory, self._descriptor = directory, descriptor
        self._end = weakref.finalize(self, _release, key, descriptor)

    def check(self) -> None:
        """Check that the run's directory was not removed or replaced by another run.

        Without POSIX locks this cannot be checked, and no error is raised.

        Raises
        ------
        OSError
            If the lock file was removed or replaced.
        """
        if self._descriptor is None or _is_same_file(self._directory / LOCK_FILE, self._descriptor):
            return
        raise OSError(
            f"'{self._directory}' was removed or replaced while it was being recorded; "
            "the files that are there now stay as they are"
        )

    def release(self) -> None:
        """Release the lock; further calls do nothing."""
        self._end()


def is_held(directory: Path) -> bool | None:
    """Return whether a process on this machine holds a run's lock; None if that is not known.

    It is not known if there is no readable lock file, if the lock file was written on another
    machine, or if this system is not Linux.
    """
    if sys.platform != "linux":
        return None
    path = directory / LOCK_FILE
    with _GUARD:
        # If this process holds the lock, opening and closing the file would release the lock.
        if (os.path.realpath(directory), os.getpid()) in _HELD:
            return True
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            holder = os.read(descriptor, _TEXT_BYTES).decode(errors="replace")
            # The file is empty if the process that locked it died before it wrote the text.
            is_local = not holder or holder.endswith(_on_this_machine())
            request = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, request)
        except OSError:
            return None
        finally:
            os.close(descriptor)
    return struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK if is_local else None


def _on_this_machine() -> str:
    return f" on {socket.gethostname()}"


def _open_and_lock(path: Path) -> int | None:
    """Open and lock a lock file; return its descriptor, or None if locks are not supported."""
    if sys.platform == "win32":
        return None
    while True:
        _check_plain(path)
        with ExitStack() as on_failure:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(path, flags, 0o666)
            on_failure.callback(os.close, descriptor)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in _REFUSED:
                    raise _already_recorded(path.parent, _holder(descriptor)) from None
                path.unlink(missing_ok=True)
                return None
            # If the path is now another file or none, the previous holder removed the file after it
            # was opened here and before it was locked: try again.
            if _is_same_file(path, descriptor):
                with suppress(OSError):  # the disk is full: the lock holds without the text
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, f"{os.getpid()}{_on_this_machine()}".encode())
                on_failure.pop_all()
                return descriptor


def _check_plain(path: Path) -> None:
    with suppress(FileNotFoundError):
        if wrong := not_plain(path, path.lstat().st_mode):
            raise UsageError(f"{wrong}; remove it")


def _is_same_file(path: Path, descriptor: int) -> bool:
    """Return whether an open file is the same file as the one now at ``path``."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _release(key: tuple[str, int], descriptor: int | None) -> None:
    directory, process = key
    if process != os.getpid():
        return  # in a forked process: the lock belongs to the parent
    if descriptor is not None:
        path = Path(directory, LOCK_FILE)
        with suppress(OSError):  # the directory may have been removed
            if _is_same_file(path, descriptor):  # otherwise the file belongs to another run
                path.unlink()  # before the lock is released: see _open_and_lock
        os.close(descriptor)
    del _HELD[key]


def _holder(descriptor: int) -> str:
    text = ""
    with suppress(OSError):
        text = os.read(descriptor, _TEXT_BYTES).decode(errors="replace")
    return f"process {text}" if text else "another process"


def _already_recorded(directory: Path, holder: str) -> UsageError:
    return UsageError(
        f"'{directory}' already holds a run that {holder} is recording; "
        "close that recorder first, or use another directory"
    )
