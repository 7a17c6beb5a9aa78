"""Imported by the process from which children are forked, so that they need not import it."""

from __future__ import annotations

import torch

from tests.support import recoverable_training as training  # noqa: F401
from trustlens.recording.statistics import cpu_backend as cpu

torch.set_num_threads(1)
cpu.CpuBackend.if_possible()  # load the C library; build it first if necessary
