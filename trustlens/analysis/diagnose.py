"""The diagnosis of a recorded run: see :mod:`trustlens.diagnosis` for the rule.

A long run is judged by the largest values of up to 2,048 buckets of steps in place of steps; an
onset is then the first step of a bucket.
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
"""Buckets of steps by which a long run is judged."""

COLUMNS: Final = ("step", "layer", "kind", "score", "evidence")


def diagnose(run: RunTables) -> pd.DataFrame:
    """Rank the layers by how far each departs from its own past.

    Parameters
    ----------
    run : Run
        Any recorded run, also one that is being recorded.

    Returns
    -------
    DataFrame
        One row for each layer that has a finding (its worst episode), most suspect first; empty
        for a healthy run. ``step`` (int64) of onset, ``layer``, ``kind`` ("not finite",
        "exploding", "vanishing" or "frozen"), ``score`` (float64: how far it went, as a multiple
        of where the alarm begins; infinite if not finite), ``evidence`` in words.
    """
    samples = run.sample(NEEDED, BUCKETS, thin=False)
    values = {name: sample.largest() for name, sample in samples.items()}
    steps = samples[NEEDED[0]].steps
    findings = [astuple(each) for each in find(LayerRows(steps, run.layer_names, values))]
    frame = pd.DataFrame(findings, columns=pd.Index(COLUMNS))
    return frame.astype({"step": np.int64, "score": np.float64})


def verdict(findings: pd.DataFrame, run: RunTables) -> str:
    """Return the findings of `diagnose` as one short line, for lists of runs."""
    if not len(findings):
        return "no steps" if not run.last_step else "no anomalies"
    first = findings.iloc[0]
    others = len(findings) - 1
    more = f", then {others} other layer{'s' if others > 1 else ''}" if others else ""
    return f"{first['layer']} {first['kind']} from step {first['step']}{more}"
