"""Load the C loops of this package as shared libraries.

A wheel for a common platform contains them ready-built, one variant for each vector width; the
widest that this processor can run is loaded. Otherwise a loop is compiled at its first use and
kept in the user's cache folder, under a name derived from its sources, the compiler and the
processor. Neither is required: every caller has a slower way without compiled loops.

All variants share PyTorch's OpenMP threads, because `torch` is imported before they are loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import platform
import tempfile
from pathlib import Path
from typing import Final

import torch

from trustlens.cache_folder import cache_folder
from trustlens.kernels.compile import BASELINE, FLAGS, X86_VARIANTS, compile_library, find_compiler

READY_BUILT: Final = Path(__file__).with_name("ready_built")
"""The folder of the ready-built libraries; only wheels for one platform have it."""

_log: Final = logging.getLogger("trustlens")

_FOLDER: Final = Path(__file__).parent
_ATTEMPTS: Final = (  # the fastest first; some compilers reject the first ones
    ("-march=native", "-fopenmp"),
    ("-march=native",),
    (),
)


def load(source: Path) -> ctypes.CDLL:
    """Return the library of a C source: ready-built if there is one, else compiled here.

    Raises
    ------
    OSError
        There is no ready-built library that can be loaded, and no compiler, or the compiler fails,
        or the compiled library cannot be loaded.
    """
    ready = ready_built(source)
    if ready is not None:
        try:
            library = ctypes.CDLL(str(ready))
        except OSError as error:
            _log.info("trustlens: '%s' cannot be loaded: %s", ready, error)
        else:
            _log.debug("trustlens: %s: ready-built '%s'", source.name, ready)
            return library
    path = compiled_here(source)
    library = ctypes.CDLL(str(path))
    _log.debug("trustlens: %s: compiled on this machine, '%s'", source.name, path)
    return library


def ready_built(source: Path) -> Path | None:
    """Return the ready-built library for this processor, or None if the package has none."""
    variants = list(X86_VARIANTS)
    # "AVX512", "AVX2" or "DEFAULT"; other architectures have names of their own and one variant.
    capability = torch.backends.cpu.get_cpu_capability().lower()
    widest = variants.index(capability if capability in variants else BASELINE)
    for variant in variants[widest:]:
        path = READY_BUILT / f"{source.stem}-{variant}.so"
        if path.exists():
            return path
    return None


def compiled_here(source: Path) -> Path:
    """Return the library compiled on this machine, from the cache folder if it is there.

    Raises
    ------
    OSError
        There is no compiler, or it fails.
    """
    compiler = find_compiler()
    texts = [path.read_bytes() for path in (source, *sorted(_FOLDER.glob("*.h")))]
    settings = (compiler, _processor(), repr((FLAGS, _ATTEMPTS)))
    key = b"\n".join([*texts, *(each.encode() for each in settings)])
    path = cache_folder() / f"{source.stem}-{hashlib.sha256(key).hexdigest()[:20]}.so"
    if not path.exists():
        # Renamed when complete: other processes may compile it at the same time.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            compiled = Path(folder) / path.name
            compile_library(compiler, source, compiled, _ATTEMPTS)
            compiled.replace(path)
    return path


def _processor() -> str:
    """Return what identifies the processor: machines of several kinds may share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    fields = ("model name", "flags", "Features")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(fields)))
