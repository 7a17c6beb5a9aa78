"""Draw the embedded subset from the full MNIST: as many digits of each kind, with a fixed seed.

    python sample_runs/make_subset.py --data FOLDER_WITH_MNIST

It writes the four files of ``sample_runs/data/``, byte for byte the same with the same zlib.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import digits

SEED = 0
TRAIN_EACH, TEST_EACH = 1000, 200


def draw(labels: NDArray[np.uint8], each: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return the indices of ``each`` random digits of every label, ascending."""
    kinds = (np.flatnonzero(labels == kind) for kind in range(10))
    return np.sort(np.concatenate([rng.choice(places, each, replace=False) for places in kinds]))


def main() -> None:
    """Read the full set, draw the subset and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the full MNIST (default: download it)")
    parser.add_argument("--out", type=Path, default=digits.EMBEDDED, help="folder to write into")
    arguments = parser.parse_args()

    full = digits.full(arguments.data)
    rng = np.random.default_rng(SEED)
    train = draw(full.train_labels, TRAIN_EACH, rng)
    test = draw(full.test_labels, TEST_EACH, rng)
    parts = (
        full.train_images[train], full.train_labels[train],
        full.test_images[test], full.test_labels[test],
    )  # fmt: skip
    for name, part in zip(digits.FILES, parts, strict=True):
        digits.write_idx(arguments.out / f"{name}.gz", part)


if __name__ == "__main__":
    main()
