"""The compiled sums, where this machine has a C compiler."""

from __future__ import annotations

import pytest

from trustlens.recording.statistics.cpu_backend import CpuBackend

COMPILED = CpuBackend.if_possible()

needs_compiler = pytest.mark.skipif(COMPILED is None, reason="there is no C compiler here")


def measure_compiled(steps):
    return COMPILED.measure(steps)
