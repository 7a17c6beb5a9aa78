"""`record` refuses arguments of a wrong type or value before it writes anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import trustlens
from trustlens.errors import UsageError

WRONG = [
    ("directory", None, "directory=None"),
    ("directory", 3, "directory=3"),
    ("directory", b"run", "'bytes' for directory"),
    ("directory", "", "directory=''"),
    ("directory", "file://", "directory='file://'"),
    ("model", 3, "model=3"),
    ("model", nn.Linear, "'type' for model"),
    ("name", 7, "name=7"),
    ("config", "lr", "config='lr'"),
    ("every", 1.5, "every=1.5"),
    ("every", True, "every=True"),
    ("every", "3", "every='3'"),
    ("every", np.int64(3), "'int64' for every"),
    ("histograms_every", None, "histograms_every=None"),
    ("resume", "yes", "resume='yes'"),
    ("fsync", "yes", "fsync='yes'"),
    ("precision", 12.5, "precision=12.5"),
    ("precision", True, "precision=True"),
    ("precision", "12", "precision='12'"),
    ("precision", 24, "precision=24"),
    ("listeners", 3, "listeners=3"),
    ("listeners", "tb", "listeners='tb'"),
]


@pytest.mark.parametrize(("option", "value", "received"), WRONG)
def test_a_wrong_argument_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, value: Any, received: str
) -> None:
    monkeypatch.chdir(tmp_path)
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    options: dict[str, Any] = {"directory": "run", option: value}
    with pytest.raises(UsageError, match=f"^record got {received}; give ") as refused:
        trustlens.record(optimizer, **options)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["record", "Recorder", "optim"])
def test_without_torch_it_says_what_to_install(name: str) -> None:
    code = f"""if True:
        import sys
        sys.modules["torch"] = None  # make `import torch` fail
        import trustlens
        try:
            trustlens.{name}
        except trustlens.TrustlensError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"trustlens.{name} needs the package 'torch'" in done.stdout
    assert "pip install torch" in done.stdout
