"""The user's cache folder: what was built, and what is not uploaded yet."""

from __future__ import annotations

import os
import sys
import tempfile
from functools import cache
from pathlib import Path


def cache_folder() -> Path:
    """Return a folder of the user's own; where there is none, one for this process."""
    try:
        folder = _below() / "trustlens"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        own = sys.platform == "win32" or folder.stat().st_uid == os.getuid()
        if own and os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # of a user without a home
        pass
    return _of_this_process()


def _below() -> Path:
    given = os.environ.get("XDG_CACHE_HOME")
    if given:
        return Path(given)
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")


@cache
def _of_this_process() -> Path:
    return Path(tempfile.mkdtemp(prefix="trustlens-"))
