"""The compiled CPU backend, if a C compiler is installed."""

from __future__ import annotations

import pytest

from trustlens.recording.statistics.cpu_backend import CpuBackend

COMPILED = CpuBackend.if_possible()

needs_compiler = pytest.mark.skipif(COMPILED is None, reason="no C compiler")


def measure_compiled(steps):
    return COMPILED.measure(steps)
