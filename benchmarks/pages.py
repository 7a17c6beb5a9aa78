"""Write the tables of results into the README and docs/benchmarks.md.

python -m benchmarks.pages
"""

from __future__ import annotations

from benchmarks.common.results import REPOSITORY
from benchmarks.common.tables import replaced
from benchmarks.files import table as files
from benchmarks.overhead import table as overhead

README = REPOSITORY / "README.md"
PAGE = REPOSITORY / "docs" / "benchmarks.md"


def readme(page: str) -> str:
    """Return the README with its two short tables."""
    page = replaced(page, "cost", "\n".join(overhead.summary(overhead.read())))
    return replaced(page, "files", "\n".join(files.summary(files.read())))


def documentation(page: str) -> str:
    """Return docs/benchmarks.md with all tables."""
    page = replaced(page, "cost", overhead.block(overhead.read()))
    return replaced(page, "files", files.block(files.read()))


def main() -> None:
    """Write both pages."""
    for path, made in ((README, readme), (PAGE, documentation)):
        path.write_text(made(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
