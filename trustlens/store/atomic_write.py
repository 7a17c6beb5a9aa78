"""Writing a file so that readers see it complete or not at all."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path


def temporary_name(name: str) -> str:
    """Return the temporary name under which a file is written. Readers skip such files."""
    return f".{name}.tmp"


@contextmanager
def atomic_write(path: Path) -> Generator[Path]:
    """Yield a temporary path to write to; rename it to ``path`` when the ``with`` block ends.

    The data is on the disk before the rename. If the block raises an error, the temporary file is
    removed, and ``path`` stays as it was.
    """
    temporary = path.with_name(temporary_name(path.name))
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # free the space: the disk may be full
            temporary.unlink(missing_ok=True)
        raise
