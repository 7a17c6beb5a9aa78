"""Load the C loops of this package as shared libraries.

A wheel for a common platform contains prebuilt libraries: one variant of each loop per vector
width. The widest variant that this processor supports is loaded. If there is none, the loop is
compiled at its first use and stored in the user's cache folder, under a name derived from its
sources, the compiler and the processor. If that fails, too, the caller uses slower operations of
PyTorch.

All libraries share PyTorch's OpenMP threads, because `torch` is imported before they are loaded.
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
"""Folder of the prebuilt libraries; it exists only in platform wheels."""

_log: Final = logging.getLogger("trustlens")

_FOLDER: Final = Path(__file__).parent
_ATTEMPTS: Final = (  # fastest first; some compilers reject the first two
    ("-march=native", "-fopenmp"),
    ("-march=native",),
    (),
)


def load(source: Path) -> ctypes.CDLL:
    """Load the library of a C source: the prebuilt one, else one compiled on this machine.

    Raises
    ------
    OSError
        If no prebuilt library can be loaded, and none can be compiled or loaded here either.
    """
    ready = ready_built(source)
    if ready is not None:
        try:
            library = ctypes.CDLL(str(ready))
        except OSError as error:
            _log.info("trustlens: '%s' cannot be loaded: %s", ready, error)
        else:
            _log.debug("trustlens: %s: prebuilt '%s'", source.name, ready)
            return library
    path = compiled_here(source)
    library = ctypes.CDLL(str(path))
    _log.debug("trustlens: %s: compiled on this machine, '%s'", source.name, path)
    return library


def ready_built(source: Path) -> Path | None:
    """Return the path of the prebuilt library for this processor; None if there is none."""
    variants = list(X86_VARIANTS)
    # On x86-64, PyTorch reports the capability "AVX512", "AVX2" or "DEFAULT". On other
    # architectures, there is only the baseline variant.
    capability = torch.backends.cpu.get_cpu_capability().lower()
    widest = variants.index(capability if capability in variants else BASELINE)
    for variant in variants[widest:]:
        path = READY_BUILT / f"{source.stem}-{variant}.so"
        if path.exists():
            return path
    return None


def compiled_here(source: Path) -> Path:
    """Return the path of the library in the cache folder; compile it if it is missing.

    Raises
    ------
    OSError
        If there is no compiler, or the compiler fails.
    """
    compiler = find_compiler()
    texts = [path.read_bytes() for path in (source, *sorted(_FOLDER.glob("*.h")))]
    settings = (compiler, _processor(), repr((FLAGS, _ATTEMPTS)))
    key = b"\n".join([*texts, *(each.encode() for each in settings)])
    path = cache_folder() / f"{source.stem}-{hashlib.sha256(key).hexdigest()[:20]}.so"
    if not path.exists():
        # The library is compiled in a temporary folder and then moved, because other processes may
        # compile it at the same time.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            compiled = Path(folder) / path.name
            compile_library(compiler, source, compiled, _ATTEMPTS)
            compiled.replace(path)
    return path


def _processor() -> str:
    """Return a text that identifies the processor.

    A hash of it is part of a compiled library's name, since machines with different processors may
    share the cache folder.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    fields = ("model name", "flags", "Features")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(fields)))
