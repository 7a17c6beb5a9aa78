"""Write results, and name the folder that stores them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

REPOSITORY: Final = Path(__file__).parents[2]
RESULTS: Final = REPOSITORY / "benchmarks" / "results"


def write(folder: Path, name: str, result: Mapping[str, Any]) -> Path:
    """Write ``name.json`` into a folder atomically and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False)
    path.with_suffix(".tmp").write_text(text + "\n", encoding="utf-8")
    return path.with_suffix(".tmp").replace(path)


def at_least_one(text: str) -> int:
    """Return a command-line argument as a positive integer."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"got {text}; give 1 or more")
    return number
