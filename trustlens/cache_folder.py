"""Where trustlens caches files: compiled C code, and files of runs that wait for their upload."""

from __future__ import annotations

import os
import sys
import tempfile
from functools import cache
from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """Return the folder in which trustlens caches files.

    On Linux it is ``$XDG_CACHE_HOME/trustlens`` or ``~/.cache/trustlens``; on macOS and Windows it
    is in the system's folder for caches. If that folder cannot be created, belongs to another user
    or is not writable, a temporary folder is returned, always the same one within a process.
    """
    try:
        folder = user_cache_path("trustlens", appauthor=False)
        if folder.is_absolute():  # older platformdirs return "~/.cache" for a user without a home
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            own = sys.platform == "win32" or folder.stat().st_uid == os.getuid()
            if own and os.access(folder, os.W_OK):
                return folder
    except (
        OSError,
        RuntimeError,
    ):  # newer platformdirs raise RuntimeError for a user without a home
        pass
    return _temporary_folder()


@cache
def _temporary_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="trustlens-"))
