"""Convert the data of ridgelines to the JSON value that the canvas script draws."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from trustlens.figures.axis import on_axis, ticks
from trustlens.figures.ridgelines.data import BANDWIDTH, RidgelineData, RunRidges
from trustlens.figures.ridgelines.words import note, summary
from trustlens.figures.theme import THEMES, color_at


def payload(data: RidgelineData, run_ids: Sequence[str]) -> dict[str, Any]:
    """Return the ridgelines as the JSON value that ``trustlens.ridgelines.show`` draws.

    Heights are uint16 (little endian) in base64. A height times ``factor``, which is the same for
    all runs, is the number of layers per bucket.

    Parameters
    ----------
    data : RidgelineData
        The result of ``trustlens.figures.ridgeline_data``.
    run_ids : sequence of str
        An id for each run, used as the ``data-run`` attribute of its canvas.
    """
    steps = [run.steps for run in data.runs if len(run.steps)]
    first = min((int(s[0]) for s in steps), default=0)
    last = max((int(s[-1]) for s in steps), default=1)
    top = data.peak
    # The height of one layer's bump. A tick of n means n layers with the same value.
    bump = 1 / (BANDWIDTH * (len(data.edges) - 1) * math.sqrt(2 * math.pi))
    return {
        "axis": _axis(data),
        "steps": {
            "lo": first,
            "hi": last,
            "ticks": [
                {"at": at, "label": label}
                for at, label in ticks(first, max(last, first + 1), "linear", 5)
                if at == int(at)
            ],
        },
        "height": {
            "top": top,
            "ticks": [
                {"at": layers * bump, "label": label}
                for layers, label in ticks(0, top / bump, "linear", 4)
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
            _run(data, run, run_id, (first, last))
            for run, run_id in zip(data.runs, run_ids, strict=True)
        ],
    }


def _axis(data: RidgelineData) -> dict[str, Any]:
    low, high = float(data.edges[0]), float(data.edges[-1])
    first, last = (float(x) for x in on_axis(data.edges[[0, -1]], data.scale))
    marks = ticks(low, high, data.scale, 6)
    places = on_axis(np.array([value for value, _ in marks]), data.scale)
    share = (places - first) / (last - first)
    return {
        "scale": data.scale,
        "lo": low,
        "hi": high,
        "buckets": len(data.edges) - 1,
        "symbol": data.quantity.symbol,
        "title": f"{data.quantity.title} {data.quantity.symbol}",
        "ticks": [
            {"at": float(at), "label": label} for at, (_, label) in zip(share, marks, strict=True)
        ],
    }


def _run(data: RidgelineData, run: RunRidges, run_id: str, span: tuple[int, int]) -> dict[str, Any]:
    factor = data.peak / 65535
    packed = np.round(run.heights / factor).astype("<u2")
    return {
        "id": run_id,
        "label": run.label,
        "note": note(run),
        "summary": summary(data, run),
        "empty": run.note,
        "layers": run.layers,
        "steps": run.steps.tolist(),
        "heights": base64.b64encode(packed.tobytes()).decode(),
        "factor": factor,
        "below": run.below.tolist(),
        "above": run.above.tolist(),
        "nonfinite": run.nonfinite.tolist(),
        "color": {name: theme.runs[run.color].line for name, theme in THEMES.items()},
        "ridgeColors": _ridge_colors(run, span),
    }


def _ridge_colors(run: RunRidges, span: tuple[int, int]) -> dict[str, list[str]]:
    """Return a dict from the name of each theme to the colours of the ridges.

    ``span`` is the first and the last step of all runs. A ridge at the first step gets the first
    colour of the run's ramp, a ridge at the last step the last colour.
    """
    first, last = span
    shares = [(step - first) / (last - first) if last > first else 1.0 for step in run.steps]
    return {
        name: [color_at(theme.runs[run.color].ramp, share) for share in shares]
        for name, theme in THEMES.items()
    }
