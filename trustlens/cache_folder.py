"""The user's cache folder: compiled loops, and files that are not uploaded yet."""

from __future__ import annotations

import os
import sys
import tempfile
from functools import cache
from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """Return a folder that belongs to the user; without one, a temporary one for this process.

    It is ``$XDG_CACHE_HOME/trustlens`` or ``~/.cache/trustlens`` on Linux, and where the system
    keeps caches on macOS and Windows.
    """
    try:
        folder = user_cache_path("trustlens", appauthor=False)
        if folder.is_absolute():  # "~/.cache" is not: no home, in older platformdirs
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            own = sys.platform == "win32" or folder.stat().st_uid == os.getuid()
            if own and os.access(folder, os.W_OK):
                return folder
    except (OSError, RuntimeError):  # RuntimeError: no home, in newer platformdirs
        pass
    return _of_this_process()


@cache
def _of_this_process() -> Path:
    return Path(tempfile.mkdtemp(prefix="trustlens-"))
