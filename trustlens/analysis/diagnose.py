"""Diagnose a recorded run by the rules of :mod:`trustlens.diagnosis`.

A long run (see :meth:`RunTables.sample`) is read in at most 2,048 buckets of steps. The largest
value of a layer in a bucket represents the bucket. A finding then begins at the first step of a
bucket.
"""

from __future__ import annotations

from dataclasses import astuple
from typing import Final

import numpy as np
import pandas as pd

from trustlens.analysis.tables import RunTables
from trustlens.diagnosis.detector import find
from trustlens.diagnosis.signals import NEEDED, LayerRows

BUCKETS: Final = 2048
"""A long run is read in at most this number of buckets of steps."""

COLUMNS: Final = ("step", "layer", "kind", "score", "evidence")


def diagnose(run: RunTables) -> pd.DataFrame:
    """Return the layers that departed from their own past, most suspect first.

    Parameters
    ----------
    run : Run
        A recorded run; its recording may still be in progress.

    Returns
    -------
    DataFrame
        One row for each layer with an alarm, most suspect first; empty for a healthy run. If a
        layer had several alarms, its row describes the worst one. Columns: ``step`` (int64), at
        which the alarm began; ``layer``; ``kind`` ("not finite", "exploding", "vanishing" or
        "frozen"); ``score`` (float64), 1 at the alarm threshold, infinite if a value is not
        finite; ``evidence``, a sentence about the values that raised the alarm.
    """
    samples = run.sample(NEEDED, BUCKETS, thin=False)
    values = {name: sample.largest() for name, sample in samples.items()}
    steps = samples[NEEDED[0]].steps
    findings = [astuple(each) for each in find(LayerRows(steps, run.layer_names, values))]
    frame = pd.DataFrame(findings, columns=pd.Index(COLUMNS))
    return frame.astype({"step": np.int64, "score": np.float64})


def verdict(findings: pd.DataFrame, run: RunTables) -> str:
    """Return one short line that sums up the findings, for use in lists of runs."""
    if not len(findings):
        return "no steps" if not run.last_step else "no anomalies"
    first = findings.iloc[0]
    others = len(findings) - 1
    more = f", then {others} other layer{'s' if others > 1 else ''}" if others else ""
    return f"{first['layer']} {first['kind']} from step {first['step']}{more}"
