"""Finding the runs below a folder."""

from __future__ import annotations

import os
from pathlib import Path

from trustlens.errors import UsageError
from trustlens.store.layout import RUN_FILE


def find_runs(root: str | os.PathLike[str]) -> list[Path]:
    """Return the directories that hold a run, ``root`` itself or below it, sorted by path.

    Raises
    ------
    UsageError
        There is no such directory, or it cannot be read.
    """
    top = Path(root)
    try:
        os.scandir(top).close()  # since os.walk passes over what it cannot read
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            what = "does not exist"
        elif isinstance(error, NotADirectoryError):
            what = "is not a directory"
        else:
            what = f"cannot be read ({error.strerror})"
        raise UsageError(f"'{top}' {what}; give a directory that holds runs") from None
    found: list[Path] = []
    for folder, subfolders, files in os.walk(top):
        if RUN_FILE in files:
            found.append(Path(folder))
            subfolders.clear()  # a run holds no runs
        else:
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
    return sorted(found)
