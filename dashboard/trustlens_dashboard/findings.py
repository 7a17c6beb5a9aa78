"""The findings of a run, cached until the run changes."""

from __future__ import annotations

import time
from typing import Final

import pandas as pd

from trustlens.analysis.run import Run
from trustlens_dashboard.library import Snapshot

LIVE_SECONDS: Final = 10.0
"""Seconds between two diagnoses of a run that is being recorded: each one reads every step."""


def cached_findings(snapshot: Snapshot, run: Run) -> pd.DataFrame:
    """Return ``run.diagnose()``; up to ``LIVE_SECONDS`` old while the run is being recorded."""
    state = snapshot.state(run)
    live = state.status == "recording"
    version = f"{time.time() // LIVE_SECONDS:.0f}" if live else state.version
    return snapshot.results.get("findings", (run,), version, run.diagnose, _size)


def _size(findings: pd.DataFrame) -> int:
    return int(findings.memory_usage(deep=True).sum())
