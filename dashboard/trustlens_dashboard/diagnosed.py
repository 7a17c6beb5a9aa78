"""Findings of a run, remembered as long as they hold."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Final

import pandas as pd

from trustlens.analysis.run import Run

PATIENCE: Final = 10.0
"""Seconds for which a run that is being recorded is not diagnosed again: it reads every step."""


def diagnosed(run: Run) -> pd.DataFrame:
    """Return ``run.diagnose()``, at most that many seconds old while the run is recorded."""
    live = run.status == "recording"
    return _diagnosed(run, f"{time.time() // PATIENCE:.0f}" if live else run.version)


@lru_cache(maxsize=256)
def _diagnosed(run: Run, _when: str) -> pd.DataFrame:
    return run.diagnose()
