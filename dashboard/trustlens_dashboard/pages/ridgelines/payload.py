"""What the ridgelines' canvas needs, from the same data as the Plotly figure."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from trustlens import element_bins as bins
from trustlens.figures.ridgelines.data import BANDWIDTH, RidgelineData, RunRidges
from trustlens.figures.theme import THEMES


def payload(
    data: RidgelineData, run_ids: Sequence[str], summaries: Sequence[str]
) -> dict[str, Any]:
    """Return the data as JSON can hold it; heights as base64 of uint16 of a common top.

    Parameters
    ----------
    data : RidgelineData
        As ``trustlens.figures.ridgeline.ridgeline_data`` made it.
    run_ids, summaries : sequence of str
        Of each run: its opaque id, and a sentence that says what its picture shows.
    """
    steps = [run.steps for run in data.runs if len(run.steps)]
    first = min((int(s[0]) for s in steps), default=0)
    last = max((int(s[-1]) for s in steps), default=1)
    top = data.peak
    # The height of one layer's bump: the axis counts layers that lie at the same place.
    bump = 1 / (BANDWIDTH * (len(data.edges) - 1) * math.sqrt(2 * math.pi))
    return {
        "axis": _axis(data),
        "steps": {
            "lo": first,
            "hi": last,
            "ticks": [
                {"at": at, "label": label}
                for at, label in bins.ticks(first, max(last, first + 1), "linear", 5)
                if at == int(at)
            ],
        },
        "height": {
            "top": top,
            "ticks": [
                {"at": layers * bump, "label": label}
                for layers, label in bins.ticks(0, top / bump, "linear", 4)
                if layers == int(layers)
            ],
        },
        "colors": {
            name: {
                "paper": theme.background,
                "ink": theme.ink,
                "muted": theme.muted,
                "grid": theme.grid,
                "axis": theme.axis,
                "panel": theme.panel,
                "alert": theme.alert,
                "crest": theme.crest,
            }
            for name, theme in THEMES.items()
        },
        "runs": [
            _run(run, run_id, summary, top)
            for run, run_id, summary in zip(data.runs, run_ids, summaries, strict=True)
        ],
    }


def _axis(data: RidgelineData) -> dict[str, Any]:
    low, high = float(data.edges[0]), float(data.edges[-1])
    first, last = (float(x) for x in bins.on_axis(data.edges[[0, -1]], data.scale))
    ticks = bins.ticks(low, high, data.scale, 6)
    places = bins.on_axis(np.array([value for value, _ in ticks]), data.scale)
    share = (places - first) / (last - first)
    return {
        "scale": data.scale,
        "lo": low,
        "hi": high,
        "buckets": len(data.edges) - 1,
        "symbol": data.quantity.symbol,
        "title": f"{data.quantity.title} {data.quantity.symbol}",
        "ticks": [
            {"at": float(at), "label": label} for at, (_, label) in zip(share, ticks, strict=True)
        ],
    }


def _run(run: RunRidges, run_id: str, summary: str, top: float) -> dict[str, Any]:
    factor = top / 65535
    packed = np.round(run.heights / factor).astype("<u2")
    told = f" · {int(run.steps[-1]):,} steps".replace(",", "\u202f") if len(run.steps) else ""
    if run.width > 1:
        told = f" · each ridge the means of {run.width:,} steps".replace(",", "\u202f")
    return {
        "id": run_id,
        "label": run.label,
        "note": f"{run.layers} layer{'' if run.layers == 1 else 's'}{told}",
        "summary": summary,
        "empty": run.note,
        "layers": run.layers,
        "steps": run.steps.tolist(),
        "heights": base64.b64encode(packed.tobytes()).decode(),
        "factor": factor,
        "below": run.below.tolist(),
        "above": run.above.tolist(),
        "nonfinite": run.nonfinite.tolist(),
        "color": {name: theme.runs[run.color].line for name, theme in THEMES.items()},
        "ramp": {name: list(theme.runs[run.color].ramp) for name, theme in THEMES.items()},
    }
