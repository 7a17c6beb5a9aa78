"""One writer a run: a lock that vanishes with the process that holds it."""

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
"""What lockf says where another process has the lock; other errors: there are no locks here."""

_HELD: Final[dict[tuple[str, int], object]] = {}
"""The directories locked by this process, with its id: a fork's copy of the table says nothing."""


_OPENING: Final = Lock()
"""Held while it is asked whether this process has a lock, and while one is only looked at."""

_FLOCK: Final = "hhqqi"  # struct flock of Linux
_TEXT: Final = 1024  # bytes, of the lock's file


class RunLock:
    """The right to write into a run's directory, from now until :meth:`release`.

    A POSIX record lock: no fork inherits it, and a process that was killed leaves none. Where
    there is none to be had (Windows, some network file systems), only the writers of this process
    are kept apart.

    Raises
    ------
    UsageError
        Another writer has it.
    OSError
        The directory cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        key, mine = (os.path.realpath(directory), os.getpid()), object()
        # Asked first: to close a second descriptor of the file would drop the lock.
        with _OPENING:
            taken = _HELD.setdefault(key, mine) is not mine
        if taken:
            raise _taken(directory, "this process")
        try:
            descriptor = _locked(directory / LOCK_FILE)
        except BaseException:
            del _HELD[key]
            raise
        self._directory, self._descriptor = directory, descriptor
        self._end = weakref.finalize(self, _release, key, descriptor)

    def check(self) -> None:
        """Make sure that nobody removed the run meanwhile, or began another in its place.

        Where there are no locks it cannot be told.

        Raises
        ------
        OSError
            Its lock's file is not there any more; one that is there is another's.
        """
        if self._descriptor is None or _is_at(self._directory / LOCK_FILE, self._descriptor):
            return
        raise OSError(
            f"'{self._directory}' was removed or replaced while it was being recorded; "
            "nothing that is there now is touched"
        )

    def release(self) -> None:
        """Give it back; a second time does nothing."""
        self._end()


def is_held(directory: Path) -> bool | None:
    """Tell whether a process on this machine holds a run's lock; None if that cannot be told.

    It is not to be told where there is no lock's file, where that was written on another machine,
    and on systems other than Linux.
    """
    if sys.platform != "linux":
        return None
    path = directory / LOCK_FILE
    with _OPENING:
        # A descriptor of this process, closed, would drop a lock of this process.
        if (os.path.realpath(directory), os.getpid()) in _HELD:
            return True
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            holder = os.read(descriptor, _TEXT).decode(errors="replace")
            here = not holder or holder.endswith(_on_this_machine())  # died before it could say so
            asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            told = fcntl.fcntl(descriptor, fcntl.F_GETLK, asked)
        except OSError:
            return None
        finally:
            os.close(descriptor)
    return struct.unpack(_FLOCK, told)[0] != fcntl.F_UNLCK if here else None


def _on_this_machine() -> str:
    return f" on {socket.gethostname()}"


def _locked(path: Path) -> int | None:
    """Return the descriptor of the lock's file, locked; None where there are no locks."""
    if sys.platform == "win32":
        return None
    while True:
        _check_plain(path)
        with ExitStack() as unless_locked:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(path, flags, 0o666)
            unless_locked.callback(os.close, descriptor)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in _REFUSED:
                    raise _taken(path.parent, _holder(descriptor)) from None
                path.unlink(missing_ok=True)
                return None
            # If not, its holder took the file away between the opening and the locking.
            if _is_at(path, descriptor):
                with suppress(OSError):  # no room: what it says is for information only
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, f"{os.getpid()}{_on_this_machine()}".encode())
                unless_locked.pop_all()
                return descriptor


def _check_plain(path: Path) -> None:
    with suppress(FileNotFoundError):
        if wrong := not_plain(path, path.lstat().st_mode):
            raise UsageError(f"{wrong}; remove it")


def _is_at(path: Path, descriptor: int) -> bool:
    """Tell whether a file that is open is the one that lies at that path now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _release(key: tuple[str, int], descriptor: int | None) -> None:
    directory, process = key
    if process != os.getpid():
        return  # a fork's copy: the lock is the other process's
    if descriptor is not None:
        path = Path(directory, LOCK_FILE)
        with suppress(OSError):  # the directory may be gone
            if _is_at(path, descriptor):  # or another run lie there
                path.unlink()  # while it is held: see _locked
        os.close(descriptor)
    del _HELD[key]


def _holder(descriptor: int) -> str:
    who = ""
    with suppress(OSError):
        who = os.read(descriptor, _TEXT).decode(errors="replace")
    return f"process {who}" if who else "another process"


def _taken(directory: Path, holder: str) -> UsageError:
    return UsageError(
        f"'{directory}' already holds a run that {holder} is recording; "
        "close that recorder first, or use another directory"
    )
