"""The list of runs, one row a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import pandas as pd

from trustlens.analysis.diagnose import verdict
from trustlens.analysis.run import Run
from trustlens.errors import TrustlensError
from trustlens_dashboard.components.grid import NUMBER
from trustlens_dashboard.diagnosed import diagnosed
from trustlens_dashboard.library import Entry, Library
from trustlens_dashboard.selection import learning_rate

COLUMNS: Final[Sequence[Mapping[str, Any]]] = (
    {
        "field": "name",
        "headerName": "Run",
        "flex": 2,
        "minWidth": 190,
        "tooltipField": "path",
        "filter": True,
    },
    {"field": "optimizer", "headerName": "Optimizer", "flex": 1, "minWidth": 110},
    {"field": "lr", "headerName": "Learning rate", "flex": 1, "minWidth": 130, **NUMBER},
    {"field": "layers", "headerName": "Layers", "flex": 1, **NUMBER},
    {"field": "steps", "headerName": "Steps", "flex": 1, **NUMBER},
    {"field": "loss", "headerName": "Last loss", "flex": 1, "minWidth": 100, **NUMBER},
    {"field": "accuracy", "headerName": "Last accuracy", "flex": 1, "minWidth": 130, **NUMBER},
    {
        "field": "status",
        "headerName": "Status",
        "flex": 1,
        "minWidth": 125,
        "cellClassRules": {
            f"status-{name}": f"params.value === '{name}'"
            for name in ("recording", "closed", "interrupted", "damaged")
        },
    },
    {
        "field": "verdict",
        "headerName": "Verdict",
        "flex": 3,
        "minWidth": 240,
        "tooltipField": "verdict",
        "cellClassRules": {
            "verdict-bad": "params.data.findings > 0 || params.data.status === 'damaged'"
        },
    },
)


def version(library: Library) -> list[list[str]]:
    """Return what changes whenever a row would."""
    return [[entry.id, *_state(entry)] for entry in library.entries()]


def _state(entry: Entry) -> list[str]:
    try:
        return [entry.run.version, entry.run.status] if entry.run else [entry.error]
    except (TrustlensError, OSError) as error:  # it is going, being replaced, or not to be read
        return [str(error)]


def rows(library: Library) -> list[dict[str, Any]]:
    """Return one row a run; a run that cannot be read says why."""
    return [_row(entry, library) for entry in library.entries()]


def _row(entry: Entry, library: Library) -> dict[str, Any]:
    path = entry.path.relative_to(library.root).as_posix()
    base = {"id": entry.id, "name": entry.name, "path": path}
    if entry.run is None:
        return {**base, "status": "damaged", "verdict": entry.error, "findings": 0}
    try:
        return {**base, **_summary(entry.run, entry.run.version), "status": entry.run.status}
    except (TrustlensError, OSError) as error:
        return {**base, "status": "damaged", "verdict": str(error), "findings": 0}


@lru_cache(maxsize=512)
def _summary(run: Run, _version: str) -> dict[str, Any]:
    metrics = run.metrics()
    findings = diagnosed(run)
    return {
        "optimizer": run.family,
        "lr": learning_rate(run),
        "layers": len(run.layer_names),
        "steps": run.last_step,
        "loss": _last(metrics, "loss"),
        "accuracy": _last(metrics, "acc"),
        "verdict": verdict(findings, run),
        "findings": len(findings),
    }


def _last(metrics: pd.DataFrame, word: str) -> float | None:
    """Return the last value of the metric that the word names best: exactly, at its end, within."""
    names = metrics["name"].unique()
    named = [name for name in names if word in str(name).lower()]
    if not named:
        return None
    best = min(named, key=lambda name: (name != word, not str(name).endswith(word), len(str(name))))
    value = float(metrics.loc[metrics["name"] == best, "value"].iloc[-1])
    return value if value == value else None  # NaN is not JSON  # noqa: PLR0124
