"""Test that samples distinguish missing values from values that are not finite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from trustlens.analysis.discovery import open_run
from trustlens.figures.sampling import read_sample


def test_missing_values_are_not_reported_as_nonfinite(
    synthetic_run: Callable[..., Path],
) -> None:
    momentum = np.ones((4, 3))
    momentum[:, 1] = np.nan  # this layer's optimizer has no momentum
    momentum[2:, 2] = np.nan  # this one's became NaN
    momentum[3, 0] = np.inf
    nonfinite = np.zeros((4, 3))
    nonfinite[2:, 1:] = 5
    path = synthetic_run(layers=3, steps=4, values={
        "momentum_norm": momentum, "nonfinite": nonfinite, "surprise": None})  # fmt: skip
    run = open_run(path)
    read = read_sample(run, "momentum_norm", 9, (1, 4))
    expected = [[False] * 3, [False] * 3, [False, False, True], [True, False, True]]
    assert read.nonfinite.tolist() == expected
    assert (
        np.isnan(read.values).tolist()
        == np.isnan(np.where(momentum == np.inf, np.nan, momentum)).tolist()
    )
    assert not read_sample(run, "surprise", 9, (1, 4)).nonfinite.any()
    assert read_sample(run, "nonfinite", 9, (1, 4)).values.sum() == 20
