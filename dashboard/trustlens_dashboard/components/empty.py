"""Texts for pages that have nothing to show."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import dash_mantine_components as dmc
from dash import html

from trustlens_dashboard.library import Snapshot

FIVE_LINES: Final = """import trustlens
with trustlens.record(optimizer, "{runs}/lamb", model=model, config={{"lr": 0.01}}) as recorder:
    for batch in loader:
        loss = train_step(batch)          # calls optimizer.step() as always
        recorder.log(loss=loss)           # a tensor on any device: no waiting"""
"""The example of the README: how to record a run."""


def no_runs(root: Path) -> dmc.Paper:
    """Return the panel that is shown instead of an empty list of runs."""
    exists = root.is_dir()
    state = "There are no runs in this folder yet" if exists else "This folder does not exist yet"
    return dmc.Paper(
        [
            dmc.Title(state, order=2, size="h3"),
            dmc.Text(
                ["The dashboard watches ", html.Code(str(root)), " and lists new runs."], mt="xs"
            ),
            dmc.Text("Add these lines to a training script to record a run:", mt="md", mb="xs"),
            dmc.Code(FIVE_LINES.format(runs=root.name or "runs"), block=True),
        ],
        className="card empty",
    )


def no_run(snapshot: Snapshot) -> str:
    """Return the message of a page without a selected run."""
    if snapshot.entries:
        return "Choose a run above."
    return "There are no runs yet. The Runs page shows how to record one."


def message(text: str) -> dmc.Text:
    """Return a message that is shown instead of a figure or a table."""
    return dmc.Text(text, className="sentence")
