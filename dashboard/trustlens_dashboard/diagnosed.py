"""Findings of a run, kept until the run changes."""

from __future__ import annotations

import time
from typing import Final

import pandas as pd

from trustlens.analysis.run import Run
from trustlens_dashboard.library import Snapshot

PATIENCE: Final = 10.0
"""Seconds for which a run that is being recorded is not diagnosed again: it reads every step."""


def diagnosed(snapshot: Snapshot, run: Run) -> pd.DataFrame:
    """Return ``run.diagnose()``; while the run is recorded, at most ``PATIENCE`` seconds old."""
    state = snapshot.state(run)
    live = state.status == "recording"
    version = f"{time.time() // PATIENCE:.0f}" if live else state.version
    return snapshot.results.get("findings", (run,), version, run.diagnose, _size)


def _size(findings: pd.DataFrame) -> int:
    return int(findings.memory_usage(deep=True).sum())
