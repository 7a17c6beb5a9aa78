"""Runs on an object store: a real S3 server on this machine, and fsspec's memory."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.fs as arrow_fs
import pytest
import torch
from moto.server import ThreadedMotoServer
from runs import layers_table, run_info

import trustlens
import trustlens.recording.recorder
import trustlens.store.mirror as mirroring
from trustlens.cli import main
from trustlens.errors import MissingDependencyError, RunError, UsageError
from trustlens.store import places
from trustlens.store.coarse import read_coarse
from trustlens.store.mirror import spool_of
from trustlens.store.places import entries, exists, place
from trustlens.store.reader import RunFiles, read_table
from trustlens.store.remote import RemotePlace, remote_place
from trustlens.store.writer import RunWriter

PORT = 5761


class Server:
    """A server of S3 that can be taken away and brought back; what it holds stays."""

    def __init__(self) -> None:
        self.up()

    def up(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=PORT, verbose=False)
        self._server.start()

    def down(self) -> None:
        self._server.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    started = Server()
    yield started
    started.down()


def impatient(address: str) -> RemotePlace:
    """Arrow tries thrice, for six seconds, which is too long for a test."""
    found = remote_place(address)
    if address.startswith("s3://"):
        once = arrow_fs.AwsStandardS3RetryStrategy(max_attempts=1)
        store = arrow_fs.S3FileSystem(
            endpoint_override=f"127.0.0.1:{PORT}",
            scheme="http",
            region="us-east-1",
            retry_strategy=once,
        )
        return RemotePlace(store, found.path, found.address)
    return found


@pytest.fixture
def bucket(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> str:
    """A new bucket, and a cache folder of the test's own; short intervals."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(mirroring, "INTERVAL", 0.1)
    monkeypatch.setattr(mirroring, "PATIENCE", 1.0)
    monkeypatch.setattr(places, "remote_place", impatient)
    name = f"bucket-{abs(hash(request.node.nodeid)):x}"
    options = f"endpoint_override=127.0.0.1:{PORT}&scheme=http&region=us-east-1"
    store, _ = arrow_fs.FileSystem.from_uri(f"s3://{name}?{options}&allow_bucket_creation=true")
    store.create_dir(name)
    return f"s3://{name}/runs/{{}}?{options}"


def training() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 2))
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, number: int) -> float:
    generator = torch.Generator().manual_seed(number)
    optimizer.zero_grad()
    loss = model(torch.randn(8, 5, generator=generator)).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def train(address: str | Path, first: int = 1, last: int = 30, **options: Any) -> None:
    model, optimizer = training()
    with trustlens.record(optimizer, address, model=model, **options) as recorder:
        for number in range(first, last + 1):
            recorder.log(loss=step(model, optimizer, number))


def hold_to_a_local_one(address: str, tmp_path: Path, last: int = 30) -> None:
    train(tmp_path / "local", last=last)
    here, there = trustlens.open_run(tmp_path / "local"), trustlens.open_run(address)
    pd.testing.assert_frame_equal(there.layers(), here.layers())
    pd.testing.assert_frame_equal(there.metrics(), here.metrics())
    assert there.last_step == last
    assert there.status == "closed"
    assert there.missing() == []


def test_a_run_is_recorded_to_s3_and_read_from_there(bucket: str, tmp_path: Path) -> None:
    address = bucket.format("adam")
    train(address)
    hold_to_a_local_one(address, tmp_path)
    run = trustlens.open_run(address)
    assert run.name == "adam"
    assert str(run.path).endswith("/runs/adam")
    assert "scheme" not in str(run.path)
    read = run.overview("grad_norm", 1)
    assert np.isfinite(read.mean).all()
    assert not spool_of(place(address)).exists()
    assert main(["show", address]) == 0
    assert main(["diagnose", address]) == 0


def test_a_run_is_read_while_it_is_recorded(bucket: str) -> None:
    address = bucket.format("live")
    model, optimizer = training()
    with trustlens.record(optimizer, address, model=model) as recorder:
        seen = []
        for number in range(1, 13):
            step(model, optimizer, number)
            if number % 4 == 0:
                recorder.flush()
                run = trustlens.open_run(address)
                assert run.status == "recording"
                seen.append(run.recorded_steps().tolist())
    assert [len(steps) for steps in seen] == [4, 8, 12]


def test_nothing_is_renamed_and_what_is_sealed_is_put_once(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trustlens.store.writer.SEGMENT_ROWS", 20)
    put: list[str] = []
    whole = mirroring.Mirror._put

    def noted(self: Any, name: str) -> None:
        put.append(name)
        whole(self, name)

    monkeypatch.setattr(mirroring.Mirror, "_put", noted)
    address = bucket.format("once")
    model, optimizer = training()
    with trustlens.record(optimizer, address, model=model) as recorder:
        for number in range(1, 31):
            step(model, optimizer, number)
            if number % 3 == 0:
                recorder.flush()
    sealed = [name for name in put if name.startswith(("layers/", "steps/"))]
    assert len(sealed) == 7  # five of 24 rows, two of steps
    assert len(set(sealed)) == len(sealed)
    names = {entry.name for entry in entries(place(address))}
    assert not any(name.startswith(".") for name in names)
    assert "journal" not in names or not entries(place(address) / "journal")


def written(directory: Path, last: int, rewind: int | None = None) -> None:
    """Write a run of two layers, or go on with it, in many sealed files."""
    writer = RunWriter(
        directory, run_info(layers=["a", "b"]), resume=lambda info: info, segment_rows=40
    )
    if rewind is not None:
        writer.rewind(rewind, {})
    for begin in range((rewind or 0) + 1, last, 10):
        steps = np.arange(begin, begin + 10)
        writer.append("layers", layers_table(steps, ["a", "b"], {"weight_norm": np.ones((10, 2))}))
    writer.close(writer.info)


def test_what_was_uploaded_is_not_uploaded_again_and_what_was_rewound_not_seen_twice(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    remote, spool, killed = place(bucket.format("run")), tmp_path / "spool", tmp_path / "killed"
    assert isinstance(remote, RemotePlace)
    written(spool, 400)
    mirror = mirroring.Mirror(spool, remote)
    while not exists(remote / "run.json") or not (spool / ".uploaded.json").exists():
        mirror.flush()
    mirror.flush()
    shutil.copytree(spool, killed)  # as it is left by who is killed now
    mirror.close()
    put: list[str] = []
    whole = mirroring.Mirror._put

    def noted(self: Any, name: str) -> None:
        put.append(name)
        whole(self, name)
        read = read_coarse(RunFiles(remote), ["weight_norm"], ["a", "b"], (1, 400), 7)
        assert read["weight_norm"].rows.max() <= read["weight_norm"].width

    monkeypatch.setattr(mirroring.Mirror, "_put", noted)
    again = tmp_path / "again"
    shutil.copytree(killed, again)
    mirroring.Mirror(again, remote).close()
    assert put == []
    written(killed, 400, rewind=150)
    mirroring.Mirror(killed, remote).close()
    assert not killed.exists()
    assert "layers/000003.parquet" not in put  # of steps 61 to 80
    assert "layers/000008.parquet" in put
    steps = read_table(remote, "layers", ["step"])["step"].to_pylist()
    assert sorted(steps) == [number for number in range(1, 401) for _ in "ab"]
    read = read_coarse(RunFiles(remote), ["weight_norm"], ["a", "b"], (1, 400), 7)["weight_norm"]
    assert read.rows.tolist() == [[64, 64]] * 6 + [[16, 16]]


def test_a_network_that_goes_away_loses_nothing(
    server: Server, bucket: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = bucket.format("outage")
    model, optimizer = training()
    with trustlens.record(optimizer, address, model=model) as recorder:
        for number in range(1, 31):
            recorder.log(loss=step(model, optimizer, number))
            if number == 10:
                recorder.flush()
                server.down()
            if number == 20:
                recorder.flush()  # it cannot be there, and the training goes on
            if number == 25:
                server.up()
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert ["cannot be written" in record.getMessage() for record in warnings] == [True]
    hold_to_a_local_one(address, tmp_path)


def test_what_cannot_be_uploaded_stays_and_is_uploaded_later(
    server: Server, bucket: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = bucket.format("late")
    model, optimizer = training()
    recorder = trustlens.record(optimizer, address, model=model)
    server.down()
    for number in range(1, 31):
        recorder.log(loss=step(model, optimizer, number))
    recorder.close()
    spool = spool_of(place(address))
    assert trustlens.open_run(spool).last_step == 30
    assert f"trustlens repair '{place(address)}'" in caplog.text
    server.up()
    assert main(["repair", address]) == 0
    hold_to_a_local_one(address, tmp_path)
    assert not spool.exists()
    assert main(["repair", address]) == 2


def test_a_killed_recording_goes_on_from_its_spool(bucket: str, tmp_path: Path) -> None:
    address = bucket.format("killed")
    code = f"""
        import os, signal, sys
        sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
        import trustlens, trustlens.store.mirror as mirroring
        from test_remote import step, training
        model, optimizer = training()
        recorder = trustlens.record(optimizer, {address!r}, model=model)
        for number in range(1, 13):
            recorder.log(loss=step(model, optimizer, number))
        recorder.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(UsageError, match="already holds a run"):
        train(address)
    model, optimizer = training()
    for number in range(1, 9):  # the checkpoint is of step 8
        step(model, optimizer, number)
    with trustlens.record(optimizer, address, model=model, resume=True) as recorder:
        for number in range(9, 31):
            recorder.log(loss=step(model, optimizer, number))
    hold_to_a_local_one(address, tmp_path)


def test_a_run_goes_on_on_another_machine(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = bucket.format("moved")
    train(address, last=20)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    (tmp_path / "other").mkdir()
    model, optimizer = training()
    for number in range(1, 16):
        step(model, optimizer, number)
    with trustlens.record(optimizer, address, model=model, resume=True) as recorder:
        for number in range(16, 31):
            recorder.log(loss=step(model, optimizer, number))
    hold_to_a_local_one(address, tmp_path)


def test_a_spool_of_an_older_state_is_not_gone_on_with(bucket: str, tmp_path: Path) -> None:
    address = bucket.format("stale")
    train(address, last=10)
    spool = spool_of(place(address))
    mirroring._download(place(address), spool)
    train(address, last=20, resume=True)  # elsewhere, in the meantime
    mirroring._download(place(address), tmp_path / "kept")
    stale = spool_of(place(address))
    (tmp_path / "kept" / "run.json").unlink()
    mirroring._download(place(address), stale)
    text = (stale / "run.json").read_text(encoding="utf-8")
    session = trustlens.open_run(stale).info.recorder[mirroring.SESSION]
    (stale / "run.json").write_text(text.replace(session, "an older one"), encoding="utf-8")
    train(address, last=30, resume=True)
    hold_to_a_local_one(address, tmp_path)
    assert len(list(stale.parent.glob(f"{stale.name}-*"))) == 1


def test_fsspec_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    train("memory://runs/adam")
    hold_to_a_local_one("memory://runs/adam", tmp_path)


def test_addresses_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    with pytest.raises(UsageError, match="neither Arrow nor fsspec knows 'nope://'"):
        trustlens.open_run("nope://bucket/run")
    with pytest.raises(RunError, match=r"there is no directory 's3://.*/runs/nothing'"):
        trustlens.open_run(bucket.format("nothing"))
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingDependencyError, match="pip install 'trustlens-optim\\[remote\\]'"):
        trustlens.open_run("memory://runs/adam")


def test_plain_paths_and_file_addresses_are_this_machines(tmp_path: Path) -> None:
    assert place(tmp_path) == tmp_path
    assert place(f"file://{tmp_path}") == tmp_path
    assert place(os.fspath(tmp_path)) == tmp_path
    remote = RemotePlace(None, "bucket/runs", "s3://bucket/runs")
    assert place(remote) is remote
    assert str(remote / "lamb" / "run.json") == "s3://bucket/runs/lamb/run.json"
