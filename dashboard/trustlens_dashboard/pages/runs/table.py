"""The table of runs: one row per run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import pandas as pd

from trustlens.analysis.diagnose import verdict
from trustlens.analysis.run import Run
from trustlens.errors import TrustlensError
from trustlens_dashboard.components.grid import NUMBER
from trustlens_dashboard.findings import cached_findings
from trustlens_dashboard.library import Entry, Snapshot
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


def version(snapshot: Snapshot) -> list[list[str]]:
    """Return a JSON value that changes whenever a row changes."""
    return [[entry.id, *snapshot.version(entry)] for entry in snapshot.entries]


def rows(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return one row per run. The verdict of an unreadable run is the error."""
    return [_row(snapshot, entry) for entry in snapshot.entries]


def _row(snapshot: Snapshot, entry: Entry) -> dict[str, Any]:
    path = entry.path.relative_to(snapshot.root).as_posix()
    base = {"id": entry.id, "name": entry.name, "path": path}
    if entry.run is None:
        return {**base, "status": "damaged", "verdict": entry.error, "findings": 0}
    try:
        state = snapshot.state(entry.run)
        compute = partial(_summary, snapshot, entry.run)
        summary = snapshot.results.get("summary", (entry.run,), state.version, compute, _size)
    except (TrustlensError, OSError) as error:
        return {**base, "status": "damaged", "verdict": str(error), "findings": 0}
    return {**base, **summary, "status": state.status}


def _summary(snapshot: Snapshot, run: Run) -> dict[str, Any]:
    metrics = run.metrics()
    findings = cached_findings(snapshot, run)
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


def _size(summary: dict[str, Any]) -> int:
    return 1000 + len(summary["verdict"])


def _last(metrics: pd.DataFrame, word: str) -> float | None:
    """Return the last value of the metric whose name matches ``word`` best.

    A name that equals the word is preferred, then a name that ends with the word, then a name that
    contains the word. Of several such names, the shortest is used. The result is None if no name
    contains the word, or if the value is NaN.
    """
    names = metrics["name"].unique()
    named = [name for name in names if word in str(name).lower()]
    if not named:
        return None
    best = min(named, key=lambda name: (name != word, not str(name).endswith(word), len(str(name))))
    value = float(metrics.loc[metrics["name"] == best, "value"].iloc[-1])
    return value if value == value else None  # NaN is not JSON  # noqa: PLR0124
