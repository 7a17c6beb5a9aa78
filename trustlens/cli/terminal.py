"""Output and exit statuses of the command line."""

from __future__ import annotations

import sys
from typing import Final

from trustlens.errors import TrustlensError

OK: Final = 0
FOUND: Final = 1
"""The command worked and found something wrong."""
BAD_USE: Final = 2


def say(text: str) -> None:
    """Print text, which may have several lines."""
    print(_printable(text, keep="\n"))


def print_error(message: str) -> int:
    """Print an error as one line on stderr and return the exit status."""
    print(f"trustlens: {_printable(message)}", file=sys.stderr)
    return BAD_USE


def describe(error: TrustlensError | OSError) -> str:
    """Return an error as one sentence that says what happened and what to do."""
    if isinstance(error, TrustlensError):
        return str(error)
    where = f"'{error.filename}': " if error.filename else ""
    return f"{where}{error.strerror or error}; check the path and its permissions"


def _printable(text: str, *, keep: str = "") -> str:
    """Escape control characters and characters that the terminal's encoding lacks.

    Names in a run may come from untrusted files: they must not control the terminal.
    """
    plain = "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)
    encoding = sys.stdout.encoding or "utf-8"
    return plain.encode(encoding, "backslashreplace").decode(encoding)
