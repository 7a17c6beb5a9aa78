"""Locations: one protocol for directories on this machine and on an object store."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

import trustlens
from tests.support.runs import make_run
from trustlens.errors import RunError
from trustlens.store.address import locate
from trustlens.store.location import LocalLocation, Location

Fill = Callable[[str, bytes], None]


@pytest.fixture(params=["local", "remote"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Location, Fill]:
    """A folder of each kind, and a function that writes a file below it."""
    if request.param == "local":
        (tmp_path / "run").mkdir()

        def write(name: str, data: bytes) -> None:
            path = tmp_path / "run" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

        return locate(tmp_path / "run"), write
    fsspec = pytest.importorskip("fsspec")
    address = f"memory://{uuid.uuid4().hex}/run"
    files = fsspec.filesystem("memory")
    files.mkdirs(address.removeprefix("memory:/"))
    return locate(address), lambda name, data: files.pipe(f"{address}/{name}", data)


def test_both_kinds_of_location_agree(folder: tuple[Location, Fill]) -> None:
    place, write = folder
    write("a.txt", b"12345")
    write("below/b.txt", b"1")
    assert place.name == "run"
    found = {entry.name: (entry.is_plain, entry.size * entry.is_plain) for entry in place.entries()}
    assert found == {"a.txt": (True, 5), "below": (False, 0)}
    assert sorted(place.names()) == ["a.txt", "below"]
    assert (place / "a.txt").exists()
    assert (place / "below").exists()
    assert not (place / "c.txt").exists()
    assert (place / "none").entries() == (place / "none").names() == []
    assert (place / "a.txt").read_bytes() == b"12345"
    with (place / "below/b.txt").open() as file, (place / "below/b.txt").reading():
        assert file.read() == b"1"
    with pytest.raises(FileNotFoundError):
        (place / "c.txt").open()
    assert (place / "c.txt").entry() is None
    assert str(place / "a.txt") == f"{place}/a.txt"


def test_a_file_that_was_replaced_since_it_was_listed_is_not_opened(
    folder: tuple[Location, Fill],
) -> None:
    place, write = folder
    write("a.txt", b"12345")
    (entry,) = place.entries()
    (place / "a.txt").open(entry).close()
    write("a.txt", b"123456")
    with pytest.raises(FileNotFoundError):
        (place / "a.txt").open(entry)


def test_an_entry_changes_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1")
    before = locate(path).entry()
    assert before == locate(path).entry()
    os.utime(path, ns=(0, 0))
    assert locate(path).entry() != before


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for read in (locate(tmp_path / "link").open, locate(tmp_path / "link").read_bytes):
        with pytest.raises(RunError, match="symbolic link"):
            read()


def test_all_ways_to_name_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "runs" / "lamb", steps=3)
    monkeypatch.chdir(tmp_path)
    for name in ("runs/lamb", Path("runs/lamb"), LocalLocation(Path("runs/lamb"))):
        assert trustlens.Run(name).last_step == 3
    assert trustlens.Run(f"file://{tmp_path}/runs/lamb").last_step == 3
    assert Path(trustlens.Run("runs/lamb").path).samefile(tmp_path / "runs" / "lamb")
    monkeypatch.chdir(tmp_path / "runs" / "lamb")
    assert locate(".").name == "lamb"
