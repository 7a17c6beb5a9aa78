"""`precision=` and `fsync=` of a recording."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import trustlens
from trustlens.errors import UsageError
from trustlens.schema import COUNTS, RECORDED
from trustlens.store.segments.precision import round_mantissa

FLOATS = st.lists(st.floats(width=32), min_size=1, max_size=50)


@given(FLOATS, st.integers(1, 23))
def test_values_are_rounded_to_nearest(values: list[float], bits: int) -> None:
    array = np.array(values, np.float32)
    result = round_mantissa(array, bits)
    assert result.dtype == np.float32
    finite = np.isfinite(array)
    np.testing.assert_array_equal(result[~finite], array[~finite])
    assert np.isfinite(result[finite]).all()
    # Independent: the nearest multiple of the unit in the last kept place, in float64.
    mantissa, exponent = np.frexp(array[finite].astype(np.float64))
    normal = np.abs(array[finite]) >= np.finfo(np.float32).tiny
    unit = 2.0 ** (exponent - 1 - bits)
    expected = np.rint(mantissa * 2.0 ** (bits + 1)) * unit
    fits = normal & (np.abs(expected) <= np.finfo(np.float32).max)
    np.testing.assert_array_equal(result[finite][fits].astype(np.float64), expected[fits])
    np.testing.assert_array_equal(round_mantissa(result, bits), result)


def train(directory: Path, **options: object) -> trustlens.Run:
    torch.manual_seed(0)
    model = torch.nn.Linear(40, 30)
    optimizer = torch.optim.AdamW(model.parameters())
    with trustlens.record(optimizer, directory, model=model, **options) as recorder:  # type: ignore[arg-type]
        for step in range(20):
            optimizer.zero_grad()
            model(torch.randn(8, 40)).square().mean().backward()
            optimizer.step()
            if step % 5 == 0:
                recorder.flush()
    return trustlens.open_run(directory)


def test_twelve_bits_bound_the_error_and_counts_are_exact(tmp_path: Path) -> None:
    full, rounded = train(tmp_path / "whole"), train(tmp_path / "rounded", precision=12)
    assert (full.info.recording.precision, rounded.info.recording.precision) == (23, 12)
    one, other = full.layers(), rounded.layers()
    for name in RECORDED:
        a, b = one[name].to_numpy(), other[name].to_numpy()
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        np.testing.assert_allclose(b, a, rtol=0 if name in COUNTS else 2.0**-13)
    assert (one["grad_norm"] != other["grad_norm"]).any()
    bits = other["grad_norm"].to_numpy().view(np.uint32)
    assert not (bits & 0x7FF).any()


@pytest.mark.parametrize("precision", [0, 24, -1])
def test_other_precisions_raise(tmp_path: Path, precision: int) -> None:
    with pytest.raises(UsageError, match=f"precision={precision}; give a whole number of bits"):
        train(tmp_path / "run", precision=precision)


@pytest.mark.parametrize("fsync", [False, True])
def test_the_journal_is_synced_if_requested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: bool
) -> None:
    done: list[str] = []
    original = os.fsync

    def recording_fsync(descriptor: int) -> None:
        done.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    train(tmp_path / "run", fsync=fsync)
    journals = [path for path in done if path.endswith(".arrow")]
    assert bool(journals) == fsync
