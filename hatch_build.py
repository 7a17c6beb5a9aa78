"""Build hook: add the compiled C loops to the wheel, if requested.

Set ``TRUSTLENS_COMPILE=1``, or build with cibuildwheel. Any other wheel has no compiled code and
runs on every platform: it compiles the loops at their first use.
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
    """Compiles each C source in every variant of the platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the loops and add them to the files of the wheel.

        Raises
        ------
        OSError
            If there is no compiler, or it fails.
        """
        requested = {os.environ.get(name) for name in ("TRUSTLENS_COMPILE", "CIBUILDWHEEL")}
        if version != "standard" or not requested & {"1", "true"}:
            return
        package = Path(self.root, "trustlens")
        compiling = runpy.run_path(str(package / "kernels" / "compile.py"))
        target = sysconfig.get_platform()  # for example "linux-x86_64" or "macosx-11.0-arm64"
        variants = compiling["X86_VARIANTS"]
        if not target.endswith("x86_64"):
            variants = {compiling["BASELINE"]: ()}
        # Apple's compiler does not support OpenMP: on macOS the loops use one thread.
        openmp = () if target.startswith("macosx") else ("-fopenmp",)
        self._folder = tempfile.TemporaryDirectory()
        for source in sorted(package.rglob("*.c")):
            for variant, flags in variants.items():
                library = Path(self._folder.name, f"{source.stem}-{variant}.so")
                compiling["compile_library"](
                    compiling["find_compiler"](), source, library, [(*flags, *openmp)]
                )
                path_in_wheel = f"trustlens/kernels/ready_built/{library.name}"
                build_data["force_include"][str(library)] = path_in_wheel
        # ctypes loads the libraries: one wheel per platform works with every Python version.
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{target.replace('-', '_').replace('.', '_')}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove the temporary libraries, which are now in the wheel."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()
