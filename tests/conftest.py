"""Fixtures that several tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.support.leaks import fails_on_leaks  # noqa: F401 — autouse fixture
from tests.support.runs import make_run

# Draw the same examples in every CI run, so that failures are reproducible.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture
def synthetic_run(tmp_path: Path) -> Callable[..., Path]:
    """A function that makes a run in the test's folder: `synthetic_run("adam", steps=20)`."""

    def make(name: str = "synthetic", **options: Any) -> Path:
        return make_run(tmp_path / name, **options)

    return make
