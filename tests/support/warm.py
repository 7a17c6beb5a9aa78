"""What the warm process imports, so that what is forked from it need not."""

from __future__ import annotations

import torch

from support import recoverable_training as training  # noqa: F401
from trustlens.recording.statistics import cpu_backend as cpu

torch.set_num_threads(1)
cpu.CpuBackend.if_possible()  # the library is loaded, and built if it never was
