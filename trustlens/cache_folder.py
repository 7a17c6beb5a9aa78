"""The user's cache folder, for compiled C loops and files that are not uploaded yet."""

from __future__ import annotations

import os
import sys
import tempfile
from functools import cache
from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """Return the user's cache folder; if there is none, a temporary folder of this process.

    On Linux it is ``$XDG_CACHE_HOME/trustlens`` or ``~/.cache/trustlens``; on macOS and Windows it
    is in the system's folder for caches. It must belong to the user and be writable.
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
