"""Compile a C source of this package into a shared library.

This file imports only the standard library, because the wheel's build hook runs it before the
package is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

FLAGS: Final = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-Wno-psabi")

BASELINE: Final = "baseline"
"""Name of the variant that every processor of an architecture supports."""

X86_VARIANTS: Final[Mapping[str, tuple[str, ...]]] = {
    # The keys are PyTorch's names of CPU capabilities; the flags enable the same features.
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"),
    "avx2": ("-mavx2", "-mfma"),
    BASELINE: (),
}
"""Compiler flags of each variant for x86-64, widest vectors first."""

_HEADERS: Final = Path(__file__).parent
_TIMEOUT: Final = 60  # seconds


def find_compiler() -> str:
    """Return the command of the C compiler: ``$CC``, else ``cc`` or ``gcc`` on the ``PATH``.

    Raises
    ------
    FileNotFoundError
        If there is no compiler.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        raise FileNotFoundError("no C compiler")
    return compiler


def compile_library(
    compiler: str, source: Path, target: Path, attempts: Iterable[tuple[str, ...]]
) -> None:
    """Compile a C source into a shared library, with the first flags that the compiler accepts.

    Parameters
    ----------
    compiler : str
        The compiler's command; it may contain options.
    source, target : Path
        The C file and the library to write.
    attempts : iterable of tuple of str
        Each item has flags that are added to `FLAGS`. If the compiler fails with one item, the next
        is tried.

    Raises
    ------
    OSError
        If the compiler fails with all items, or does not finish within 60 s.
    """
    message = ""
    for flags in attempts:
        command = [*compiler.split(), *FLAGS, *flags, f"-I{_HEADERS}", str(source)]
        try:
            done = subprocess.run(  # noqa: S603 — the user's own compiler
                [*command, "-o", str(target), "-lm"],
                capture_output=True,
                text=True,
                timeout=_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise OSError(f"{compiler} did not finish within {_TIMEOUT} s") from error
        if done.returncode == 0:
            return
        message = done.stderr.strip()
    raise OSError(f"{compiler} failed: {message[-200:]}")
