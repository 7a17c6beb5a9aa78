"""C sources of this package as shared libraries, built by the machine's own compiler at first use.

What was built is kept in the user's cache folder, under a name that tells its sources, compiler
and processor. No compiler is needed to install or to use the package: who asks for a library has
another way where there is none.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from trustlens.cache_folder import cache_folder

_HEADERS: Final = Path(__file__).parent
_FLAGS: Final = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-Wno-psabi")
_ATTEMPTS: Final = (  # from the fastest on; some compilers do not know the first ones
    ("-march=native", "-fopenmp"),
    ("-march=native",),
    (),
)
_SECONDS: Final = 60  # that a compiler may take


def load(source: Path) -> ctypes.CDLL:
    """Return the library of a C source, building it where this was not done on this machine yet.

    Raises
    ------
    OSError
        There is no compiler, it fails, or what it built cannot be loaded.
    """
    return ctypes.CDLL(str(_library(source)))


def _library(source: Path) -> Path:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or ""
    if not compiler:
        raise FileNotFoundError("no C compiler")
    texts = [path.read_bytes() for path in (source, *sorted(_HEADERS.glob("*.h")))]
    told = (compiler, _processor(), repr((_FLAGS, _ATTEMPTS)))
    key = b"\n".join([*texts, *(each.encode() for each in told)])
    name = f"{source.stem}-{hashlib.sha256(key).hexdigest()[:20]}.so"
    path = cache_folder() / name
    if not path.exists():
        _build(compiler, source, path)
    return path


def _build(compiler: str, source: Path, path: Path) -> None:
    # Under a name of its own first: other processes may build it at the same time.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        failed = ""
        for flags in _ATTEMPTS:
            options = [*_FLAGS, *flags, f"-I{_HEADERS}", str(source), "-o", str(made), "-lm"]
            done = subprocess.run(  # noqa: S603 — the user's own compiler
                [*compiler.split(), *options],
                capture_output=True,
                text=True,
                timeout=_SECONDS,
                check=False,
            )
            if done.returncode == 0:
                made.replace(path)
                return
            failed = done.stderr.strip()
    raise OSError(f"{compiler} says: {failed[-200:]}")


def _processor() -> str:
    """Return what tells processors apart: a home folder may be that of many machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    told = ("model name", "flags", "Features")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(told)))
