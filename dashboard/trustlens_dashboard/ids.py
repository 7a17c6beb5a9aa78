"""The id of every component that a callback speaks of, once."""

from __future__ import annotations

from typing import Final

# The frame around every page.
URL: Final = "url"
PAGE: Final = "page"
NAVIGATION: Final = "navigation"
TOOLBAR: Final = "toolbar"
RUN_A: Final = "run-a"
RUN_B: Final = "run-b"
DOT_A: Final = "run-a-dot"
DOT_B: Final = "run-b-dot"
QUANTITY: Final = "quantity"
QUANTITY_BOX: Final = "quantity-box"
SHORTCUT: Final = "quantity-shortcut"
LIVE: Final = "live"
THEME_TOGGLE: Final = "theme-toggle"
THEME: Final = "theme"
TICK: Final = "tick"
LISTING: Final = "listing"
CURSOR: Final = "cursor"

# Runs.
RUNS_GRID: Final = "runs-grid"
RUNS_BOX: Final = "runs-box"
RUNS_EMPTY: Final = "runs-empty"
RUNS_VERSION: Final = "runs-version"
RUNS_CHOSEN: Final = "runs-chosen"

# Ridgelines.
RIDGELINES: Final = "ridgelines"
RIDGELINES_DATA: Final = "ridgelines-data"
RIDGELINES_SCALE: Final = "ridgelines-scale"
RIDGELINES_VIEW: Final = "ridgelines-view"
RIDGELINES_FORMULA: Final = "ridgelines-formula"
RIDGELINES_MESSAGE: Final = "ridgelines-message"
STEP_SLIDER: Final = "step-slider"
STEP: Final = "step"
STEP_SUMMARY: Final = "step-summary"
STEP_GRID: Final = "step-grid"

# Training.
TRAINING_RUNS: Final = "training-runs"
TRAINING_NAMES: Final = "training-names"
TRAINING_GRAPH: Final = "training-graph"
TRAINING_GRID: Final = "training-grid"
TRAINING_SCALE: Final = "training-scale"

# Layers.
LAYERS_RUN: Final = "layers-run"
LAYERS_HEATMAP: Final = "layers-heatmap"
LAYERS_GRID: Final = "layers-grid"
LAYERS_FINDINGS: Final = "layers-findings"
LAYERS_FINDINGS_BOX: Final = "layers-findings-box"
LAYERS_TABLE_TITLE: Final = "layers-table-title"
LAYERS_VERDICT: Final = "layers-verdict"
LAYER: Final = "layer"
LAYER_GRAPH: Final = "layer-graph"

# Debias and smoothing.
SMOOTHING_BETAS: Final = "smoothing-betas"
SMOOTHING_SERIES: Final = "smoothing-series"
SMOOTHING_GRAPH: Final = "smoothing-graph"
SMOOTHING_DEBIASED: Final = "smoothing-debiased"
DEBIAS_GRAPH: Final = "debias-graph"
DEBIAS_RECORDED: Final = "debias-recorded"
