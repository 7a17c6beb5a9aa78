"""The ring buffer: tensors arrive unchanged, many in one copy; if it is full, it raises.

The tests need no accelerator: here the CPU is the device, and all tensors go through a ring buffer.
"""

from __future__ import annotations

import threading
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import trustlens
from trustlens.recording.measuring import measurement
from trustlens.recording.transfer import NoRoomError, Ring

CPU = torch.device("cpu")


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=60),
    takes=st.lists(st.booleans(), min_size=60, max_size=60),
)
def test_tensors_arrive_unchanged(sizes, takes):
    ring, waiting = Ring(CPU, 2048), []
    for i, size in enumerate(sizes):
        tensor = torch.full((size, 2), float(i), dtype=torch.float64 if i % 2 else torch.float32)
        try:
            waiting.append((ring.put(tensor), tensor.clone()))
        except NoRoomError:
            assert sum(t.nbytes for _, t in waiting) + tensor.nbytes > 2048 - 2 * 640
            takes[i] = True
        tensor.fill_(-1)  # the ring has its own copy
        if takes[i]:
            for parcel, expected in waiting:
                assert (parcel.open() == expected.numpy()).all()
            waiting = []
    for parcel, expected in reversed(waiting):
        assert (parcel.open() == expected.numpy()).all()


def test_a_ring_made_in_inference_mode_is_usable_outside_of_it():
    with torch.inference_mode():  # like an evaluation before the training
        ring = Ring(CPU, 64)
        first = ring.put(torch.ones(4))
    second = ring.put(torch.zeros(4))
    assert (first.open() == 1).all()
    assert (second.open() == 0).all()


def test_later_tensors_do_not_overwrite_an_opened_array():
    ring = Ring(CPU, 64)
    first = ring.put(torch.ones(4)).open()
    for _ in range(9):
        ring.put(torch.zeros(4)).open()
    assert (first == 1).all()


def test_one_copy_transfers_all_waiting_tensors(monkeypatch):
    ring, copies = Ring(CPU, 4096), []
    copy = ring._copy
    monkeypatch.setattr(ring, "_copy", lambda *args: (copies.append(args), copy(*args)))
    parcels = [ring.put(torch.full((3,), float(i))) for i in range(20)]
    assert [parcel.open()[0] for parcel in parcels] == list(range(20))
    assert len(copies) == 1


def test_one_thread_fills_the_ring_while_another_empties_it():
    ring, parcels, done = Ring(CPU, 512), [], threading.Event()
    opened = []

    def empty():
        while not done.is_set() or parcels:
            while parcels:
                opened.append(float(parcels.pop(0).open()[0]))

    thread = threading.Thread(target=empty)
    thread.start()
    put = 0
    while put < 2000:
        try:
            parcels.append(ring.put(torch.full((5,), float(put))))
            put += 1
        except NoRoomError:
            pass
    done.set()
    thread.join()
    assert opened == list(range(2000))


class Training:
    def __init__(self, directory: Path) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Linear(30, 2))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.recorder = trustlens.record(self.optimizer, directory, histograms_every=4)

    def train(self, steps: int = 10) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.model(torch.randn(8, 20)).square().mean().backward()
            self.optimizer.step()
        self.recorder.close()

    def layers(self) -> pd.DataFrame:
        self.train()
        return trustlens.open_run(self.recorder.directory).layers()


def send_through(ring: Ring, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(measurement, "send", ring.put)


def test_a_run_sent_through_the_ring_is_the_same(tmp_path: Path) -> None:
    direct = Training(tmp_path / "direct").layers()
    with pytest.MonkeyPatch.context() as patch:
        send_through(Ring(CPU, 1 << 20), patch)
        by_ring = Training(tmp_path / "ring").layers()
    pd.testing.assert_frame_equal(direct, by_ring, check_exact=True)
    counts = [trustlens.open_run(tmp_path / name).histograms() for name in ("direct", "ring")]
    pd.testing.assert_frame_equal(*counts)


def test_steps_are_dropped_and_counted_if_the_ring_is_full(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ring = Ring(CPU, 1 << 11)
    with pytest.MonkeyPatch.context() as patch:
        send_through(ring, patch)
        training = Training(tmp_path / "run")
        # As if the writer thread were stuck: nothing is taken out of the ring.
        training.recorder._pipeline._thread._write = lambda _: None
        training.train()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "slower than the training" in caplog.text
    run = trustlens.open_run(tmp_path / "run")
    assert run.info.recording.dropped >= 5
    assert any("slower than the training" in sentence for sentence in run.missing())
