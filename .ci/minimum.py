"""Print constraints.txt with each declared dependency pinned to its minimum version."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Print one constraint per line."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    declared = [*project["dependencies"], *(one for extra in extras for one in extra)]
    found = [re.fullmatch(r"([\w-]+)>=([\w.]+)", one) for one in declared]
    oldest = {_key(one[1]): f"{one[1]}=={one[2]}" for one in found if one}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if _key(line.partition("==")[0]) not in oldest:
            print(line)
    print(*oldest.values(), sep="\n")


def _key(name: str) -> str:
    return name.lower().replace("_", "-")


if __name__ == "__main__":
    main()
