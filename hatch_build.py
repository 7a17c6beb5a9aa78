"""Add the C loops, ready-built, to the wheel where that is asked for.

Set ``TRUSTLENS_COMPILE=1``, or build with cibuildwheel. Any other wheel has no compiled code and
runs everywhere: it compiles the loops at their first use.
"""

from __future__ import annotations

import os
import runpy
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ReadyBuiltLoops(BuildHookInterface[Any]):
    """Compiles each loop in every variant of the platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the loops and list them among the files of the wheel.

        Raises
        ------
        OSError
            There is no compiler, or it fails.
        """
        asked = {os.environ.get(name) for name in ("TRUSTLENS_COMPILE", "CIBUILDWHEEL")}
        if version != "standard" or not asked & {"1", "true"}:
            return
        package = Path(self.root, "trustlens")
        compiling = runpy.run_path(str(package / "kernels" / "compile.py"))
        target = sysconfig.get_platform()  # as "linux-x86_64" or "macosx-11.0-arm64"
        variants = compiling["X86_VARIANTS"]
        if not target.endswith("x86_64"):
            variants = {compiling["BASELINE"]: ()}
        # Apple's compiler has no OpenMP: the loops run on one thread there.
        openmp = () if target.startswith("macosx") else ("-fopenmp",)
        self._folder = tempfile.TemporaryDirectory()
        for source in sorted(package.rglob("*.c")):
            for variant, flags in variants.items():
                library = Path(self._folder.name, f"{source.stem}-{variant}.so")
                compiling["compile_library"](
                    compiling["find_compiler"](), source, library, [(*flags, *openmp)]
                )
                inside = f"trustlens/kernels/ready_built/{library.name}"
                build_data["force_include"][str(library)] = inside
        # The libraries are loaded by ctypes: one wheel of a platform serves every Python.
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{target.replace('-', '_').replace('.', '_')}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove the libraries, which the wheel contains now."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()
