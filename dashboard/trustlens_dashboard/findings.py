"""The findings of a run, cached until the run changes."""

from __future__ import annotations

import time
from typing import Final

import pandas as pd

from trustlens.analysis.run import Run
from trustlens_dashboard.library import Snapshot

LIVE_SECONDS: Final = 10.0
"""A run that is being recorded is diagnosed at most once in each interval of this many seconds. A
diagnosis is slow, because it reads every step."""


def cached_findings(snapshot: Snapshot, run: Run) -> pd.DataFrame:
    """Return the result of ``run.diagnose()``, from the cache if the run has not changed.

    While the run is being recorded, the result may be up to ``LIVE_SECONDS`` old.
    """
    state = snapshot.state(run)
    live = state.status == "recording"
    version = f"{time.time() // LIVE_SECONDS:.0f}" if live else state.version
    return snapshot.results.get("findings", (run,), version, run.diagnose, _size)


def _size(findings: pd.DataFrame) -> int:
    return int(findings.memory_usage(deep=True).sum())
