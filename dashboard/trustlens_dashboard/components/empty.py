"""Texts of a page that has nothing to show yet."""

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
"""The README's five lines: how a run is made."""


def no_runs(root: Path) -> dmc.Paper:
    """Return the panel that replaces the list of runs while there are none."""
    there = root.is_dir()
    state = "There are no runs in this folder yet" if there else "This folder does not exist yet"
    return dmc.Paper(
        [
            dmc.Title(state, order=2, size="h3"),
            dmc.Text(
                [html.Code(str(root)), " is being watched: runs appear by themselves."], mt="xs"
            ),
            dmc.Text("These lines in a training script record one:", mt="md", mb="xs"),
            dmc.Code(FIVE_LINES.format(runs=root.name or "runs"), block=True),
        ],
        className="card empty",
    )


def no_run(snapshot: Snapshot) -> str:
    """Return the sentence of a page that has no run to show."""
    if snapshot.entries:
        return "Choose a run above."
    return "There are no runs here yet. The list of runs says how to make one."


def sentence(text: str) -> dmc.Text:
    """Return a sentence in place of a picture or a table."""
    return dmc.Text(text, className="sentence")
