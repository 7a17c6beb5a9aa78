"""The README and the pages of docs/: links lead somewhere, and the code that they show runs."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from trustlens.cli import _parser

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ROOT / "sample_runs" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
COMMANDS = ROOT / "docs" / "command-line.md"
FOLDERS = "trustlens|dashboard|tests|benchmarks|sample_runs|docs"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", read(page), re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", read(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    targets = re.findall(r"\]\(([^)]+)\)|(?:src|srcset)=\"([^\"]+)\"", read(page))
    for target in (one or other for one, other in targets):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_source_files_that_are_named_exist(page: Path) -> None:
    for path in re.findall(rf"`((?:{FOLDERS})/[\w./-]+)`", read(page)):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize(
    "name", ["README.md", "docs/files.md", "docs/reading.md", "docs/dashboard.md"]
)
def test_the_code_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = ROOT / "sample_runs" / "recorded"
    shutil.copytree(recorded / "lamb-lr0.1", tmp_path / "runs" / "lamb")
    shutil.copytree(recorded / "adam-lr0.01", tmp_path / "runs" / "adam")
    monkeypatch.chdir(tmp_path)
    shown = [block for block in blocks(ROOT / name, "python") if "record(" not in block]
    assert shown
    exec(compile("import trustlens\n" + "".join(shown), name, "exec"), {})  # noqa: S102


def test_every_command_has_its_section() -> None:
    documented = re.findall(r"^## `trustlens (\w+)", read(COMMANDS), re.MULTILINE)
    (subparsers,) = _parser()._subparsers._group_actions
    assert documented == list(dict.fromkeys(documented))
    assert set(documented) == set(subparsers.choices)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_command_line_takes_the_commands_that_are_shown(page: Path) -> None:
    for block in blocks(page, ""):
        for line in block.splitlines():
            if line.removeprefix("$ ").startswith("trustlens "):
                words = shlex.split(line.removeprefix("$ "), comments=True)
                _parser().parse_args(words[1:])  # exits if it refuses them
