"""What the warm process imports, so that what is forked from it need not."""

from __future__ import annotations

import pyarrow.compute
import pyarrow.parquet
import torch
from recovery import training  # noqa: F401

import trustlens.recording.recorder
import trustlens.store.reader
from trustlens.recording.statistics import cpu

torch.set_num_threads(1)
cpu.Compiled.if_possible()  # the library is loaded, and built if it never was
