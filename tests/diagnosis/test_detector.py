"""The detector on arrays, without a run."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from trustlens.diagnosis.detector import find
from trustlens.diagnosis.signals import NEEDED, LayerRows


def rows(steps: int, layers: int) -> LayerRows:
    rng = np.random.default_rng(1)
    values = {name: np.exp(rng.normal(0, 0.1, (steps, layers))) for name in NEEDED}
    values["learning_rate"][:] = 0.01
    values["nonfinite"][:] = 0
    return LayerRows(np.arange(10, 10 + 2 * steps, 2), [f"l{i}" for i in range(layers)], values)


def test_a_finding_reports_the_step_not_the_row() -> None:
    faulty = rows(100, 4)
    faulty["update_norm"][60:, 2] *= 1e6
    (finding,) = find(faulty)
    assert (finding.step, finding.layer, finding.kind) == (10 + 2 * 60, "l2", "exploding")
    assert finding.score > 1


def test_empty_and_healthy_rows_have_no_findings() -> None:
    assert find(rows(0, 3)) == []
    assert find(rows(50, 0)) == []
    assert find(rows(200, 5)) == []


def test_the_detector_imports_only_numpy() -> None:
    code = "import sys, trustlens.diagnosis.detector as d; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "numpy" in done.stdout
    for heavy in ("pandas", "pyarrow", "torch", "trustlens.store", "trustlens.analysis"):
        assert f"'{heavy}'" not in done.stdout
