"""Runs on an object store: an S3 server on this machine, and fsspec's memory file system."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow.fs as arrow_fs
import pytest
import torch
from moto.server import ThreadedMotoServer

import trustlens
import trustlens.recording.recorder
import trustlens.store.remote.lease as leasing
import trustlens.store.remote.uploader as uploading
from tests.support.runs import layers_table, run_info
from trustlens.cli import main
from trustlens.errors import MissingDependencyError, RunError, UsageError
from trustlens.store import address as addresses
from trustlens.store.address import locate
from trustlens.store.downsampled import read_downsampled
from trustlens.store.location import Entry, LocalLocation
from trustlens.store.reader import RunFiles, read_table
from trustlens.store.remote import staging
from trustlens.store.remote.status import staging_folder
from trustlens.store.remote_location import RemoteLocation, remote_location
from trustlens.store.writer import RunWriter

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    PORT = free.getsockname()[1]


class Server:
    """An S3 server that can be stopped and started again; its objects are kept."""

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


def location_without_retries(address: str) -> RemoteLocation:
    """Return a location that is tried once: Arrow tries three times, for six seconds."""
    found = remote_location(address)
    if address.startswith("s3://"):
        no_retries = arrow_fs.AwsStandardS3RetryStrategy(max_attempts=1)
        store = arrow_fs.S3FileSystem(
            endpoint_override=f"127.0.0.1:{PORT}",
            scheme="http",
            region="us-east-1",
            retry_strategy=no_retries,
        )
        return replace(found, filesystem=store)
    return found


@pytest.fixture
def bucket(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> str:
    """A new bucket, a cache folder for the test, short intervals and a long flush timeout."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(uploading, "INTERVAL", 0.1)
    monkeypatch.setattr(uploading, "FLUSH_TIMEOUT", 60.0)  # on a loaded machine, too
    monkeypatch.setattr(uploading, "PATIENCE", 1.0)
    monkeypatch.setattr(leasing, "REFRESH_INTERVAL", 0.5)
    monkeypatch.setattr(addresses, "remote_location", location_without_retries)
    name = f"bucket-{abs(hash(request.node.nodeid)):x}"
    options = f"endpoint_override=127.0.0.1:{PORT}&scheme=http&region=us-east-1"
    store, _ = arrow_fs.FileSystem.from_uri(f"s3://{name}?{options}&allow_bucket_creation=true")
    store.create_dir(name)
    return f"s3://{name}/runs/{{}}?{options}"


def remote_of(address: str) -> RemoteLocation:
    found = locate(address)
    assert isinstance(found, RemoteLocation)
    return found


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


def resume_training(address: str, first: int, last: int) -> None:
    """Resume a run from a checkpoint of the step before ``first``."""
    model, optimizer = training()
    for number in range(1, first):
        step(model, optimizer, number)
    with trustlens.record(optimizer, address, model=model, resume=True) as recorder:
        for number in range(first, last + 1):
            recorder.log(loss=step(model, optimizer, number))


def compare_with_local_run(address: str, tmp_path: Path, last: int = 30) -> None:
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
    compare_with_local_run(address, tmp_path)
    run = trustlens.open_run(address)
    assert run.name == "adam"
    assert str(run.path).endswith("/runs/adam")
    assert "scheme" not in str(run.path)
    read = run.downsample("grad_norm", 1)
    assert np.isfinite(read.mean).all()
    assert not staging_folder(remote_of(address)).exists()
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
                seen.append(run.matrix("nonfinite").index.tolist())
    assert [len(steps) for steps in seen] == [4, 8, 12]


def test_nothing_is_renamed_and_segments_are_uploaded_once(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trustlens.store.writer.SEGMENT_ROWS", 20)
    put: list[str] = []
    original = RemoteLocation.put

    def recording_put(self: RemoteLocation, name: str, data: bytes) -> None:
        if name != ".lock":
            put.append(name)
        original(self, name, data)

    monkeypatch.setattr(RemoteLocation, "put", recording_put)
    address = bucket.format("once")
    model, optimizer = training()
    with trustlens.record(optimizer, address, model=model) as recorder:
        for number in range(1, 31):
            step(model, optimizer, number)
            if number % 3 == 0:
                recorder.flush()
    sealed = [name for name in put if name.startswith(("layers/", "steps/"))]
    assert len(sealed) == 7  # five segments of layers with 24 rows, two of steps
    assert len(set(sealed)) == len(sealed)
    names = {entry.name for entry in locate(address).entries()}
    assert not any(name.startswith(".") for name in names)
    assert "journal" not in names or not (locate(address) / "journal").entries()


def written(directory: Path, last: int, rollback: int | None = None) -> None:
    """Write a run of two layers in many segments, or resume it."""
    writer = RunWriter(
        directory, run_info(layers=["a", "b"]), resume=lambda info: info, segment_rows=40
    )
    if rollback is not None:
        writer.rollback(rollback, {})
    for begin in range((rollback or 0) + 1, last, 10):
        steps = np.arange(begin, begin + 10)
        writer.append("layers", layers_table(steps, ["a", "b"], {"weight_norm": np.ones((10, 2))}))
    writer.close(writer.info)


def uploaded(staged: Path, remote: RemoteLocation, last: int = 100) -> uploading.Uploader:
    """Write a run and upload it; return the uploader, which is still open."""
    written(staged, last)
    uploader = uploader_of(staged, remote)
    while not (remote / "run.json").exists() or not (staged / ".uploaded.json").exists():
        uploader.flush()
    uploader.flush()
    return uploader


def uploader_of(staged: Path, remote: RemoteLocation) -> uploading.Uploader:
    lease = leasing.Lease(remote)
    lease.take()
    return uploading.Uploader(staged, lease)


def test_files_are_not_uploaded_again_and_rows_not_seen_twice_after_a_rollback(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    remote, staged, killed = (
        remote_of(bucket.format("run")),
        tmp_path / "staging",
        tmp_path / "killed",
    )
    uploader = uploaded(staged, remote, last=400)
    shutil.copytree(staged, killed)  # as if the process was killed now
    again = tmp_path / "again"
    shutil.copytree(killed, again)
    uploader.close()
    put: list[str] = []
    original = RemoteLocation.put

    def recording_put(self: RemoteLocation, name: str, data: bytes) -> None:
        if name != ".lock":
            put.append(name)
        original(self, name, data)
        read = read_downsampled(RunFiles(remote), ["weight_norm"], ["a", "b"], (1, 400), 7)
        assert read["weight_norm"].rows.max() <= read["weight_norm"].width

    monkeypatch.setattr(RemoteLocation, "put", recording_put)
    uploader_of(again, remote).close()
    assert put == []
    written(killed, 400, rollback=150)
    uploader_of(killed, remote).close()
    assert not killed.exists()
    assert "layers/000003.parquet" not in put  # of steps 61 to 80
    assert "layers/000008.parquet" in put
    steps = read_table(remote, "layers", ["step"])["step"].to_pylist()
    assert sorted(steps) == [number for number in range(1, 401) for _ in "ab"]
    read = read_downsampled(RunFiles(remote), ["weight_norm"], ["a", "b"], (1, 400), 7)[
        "weight_norm"
    ]
    assert read.rows.tolist() == [[64, 64]] * 6 + [[16, 16]]


def test_a_network_failure_loses_nothing(
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
                recorder.flush()  # it cannot be uploaded, and the training continues
            if number == 25:
                server.up()
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert ["cannot be written" in record.getMessage() for record in warnings] == [True]
    compare_with_local_run(address, tmp_path)


def test_files_that_cannot_be_uploaded_are_kept_and_uploaded_by_repair(
    server: Server, bucket: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = bucket.format("late")
    model, optimizer = training()
    recorder = trustlens.record(optimizer, address, model=model)
    server.down()
    for number in range(1, 31):
        recorder.log(loss=step(model, optimizer, number))
    recorder.close()
    staged = staging_folder(remote_of(address))
    assert trustlens.open_run(staged).last_step == 30
    assert f"trustlens repair '{address}'" in caplog.text
    server.up()
    assert main(["repair", address]) == 0
    compare_with_local_run(address, tmp_path)
    assert not staged.exists()
    assert main(["repair", address]) == 0


def killed(address: str, cache: Path, last: int) -> None:
    """Record to an address in a process that is killed, on the machine with that cache folder."""
    code = f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parents[3])!r})
        import trustlens
        from tests.store.remote.test_remote import step, training
        model, optimizer = training()
        recorder = trustlens.record(optimizer, {address!r}, model=model)
        for number in range(1, {last} + 1):
            recorder.log(loss=step(model, optimizer, number))
        recorder.flush()
        step(model, optimizer, {last} + 1)
        recorder._pipeline._thread.flush()  # to this machine's disk, not yet to the store
        os.kill(os.getpid(), signal.SIGKILL)
    """
    cache.mkdir(exist_ok=True)
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], check=False, env=environment
    )
    assert done.returncode == -signal.SIGKILL


def test_a_killed_recording_is_resumed_from_its_staging_folder(bucket: str, tmp_path: Path) -> None:
    address = bucket.format("killed")
    killed(address, tmp_path / "cache", last=12)
    run = trustlens.open_run(address)
    assert run.status == "interrupted"  # its lock was on this machine
    assert f"on the machine that recorded it: trustlens repair '{address}'" in " ".join(
        run.missing()
    )
    with pytest.raises(UsageError, match="already holds a run"):
        train(address)
    resume_training(address, 9, 30)
    compare_with_local_run(address, tmp_path)


def test_a_run_is_resumed_on_another_machine(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = bucket.format("moved")
    train(address, last=20)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    (tmp_path / "other").mkdir()
    resume_training(address, 16, 30)
    compare_with_local_run(address, tmp_path)


def test_a_staging_folder_of_an_older_state_is_not_resumed(bucket: str, tmp_path: Path) -> None:
    address = bucket.format("stale")
    train(address, last=10)
    remote, stale = remote_of(address), staging_folder(remote_of(address))
    for name in staging.files_of(remote):
        (stale / name).parent.mkdir(parents=True, exist_ok=True)
        (stale / name).write_bytes((remote / name).open().read())
    text = (stale / "run.json").read_text(encoding="utf-8")
    session = trustlens.open_run(stale).info.recording.session
    (stale / "run.json").write_text(text.replace(session, "an older one"), encoding="utf-8")
    train(address, last=30, resume=True)
    compare_with_local_run(address, tmp_path)
    assert len(list(stale.parent.glob(f"{stale.name}-*"))) == 1


def test_fsspec_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    train("memory://runs/adam")
    compare_with_local_run("memory://runs/adam", tmp_path)


def test_addresses_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    with pytest.raises(UsageError, match="neither Arrow nor fsspec knows 'nope://'"):
        trustlens.open_run("nope://bucket/run")
    with pytest.raises(UsageError, match="'s3://' has no path"):
        trustlens.open_run("s3://")
    with pytest.raises(RunError, match=r"there is no directory 's3://.*/runs/nothing'"):
        trustlens.open_run(bucket.format("nothing"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match="cannot be opened: Install huggingface_hub"):
        trustlens.open_run("hf://bucket/run")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingDependencyError, match="pip install 'trustlens-optim\\[remote\\]'"):
        trustlens.open_run("memory://runs/adam")


def test_paths_and_file_addresses_are_local(tmp_path: Path) -> None:
    here = LocalLocation(tmp_path)
    for given in (tmp_path, f"file://{tmp_path}", os.fspath(tmp_path), here):
        assert locate(given) == here
    remote = RemoteLocation(None, "bucket/runs", "s3://bucket/runs")
    assert locate(remote) is remote
    assert str(remote / "lamb" / "run.json") == "s3://bucket/runs/lamb/run.json"


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Return a function that simulates another machine, by a cache folder of that name."""

    def go(name: str) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))

    return go


def steps_of(address: str) -> list[int]:
    return read_table(locate(address), "steps", ["step"])["step"].to_pylist()


def test_a_second_writer_on_another_machine_is_refused(
    bucket: str, elsewhere: Callable[[str], None]
) -> None:
    address = bucket.format("two")
    model, optimizer = training()
    with trustlens.record(optimizer, address, model=model) as recorder:
        step(model, optimizer, 1)
        recorder.flush()
        with pytest.raises(UsageError, match="another recorder on this machine"):
            train(address, resume=True)
        elsewhere("other")
        with pytest.raises(UsageError, match="another process is recording"):
            train(address, resume=True)
        step(model, optimizer, 2)
    assert steps_of(address) == [1, 2]


def test_files_left_on_one_machine_do_not_disturb_a_run_resumed_on_another(
    bucket: str,
    elsewhere: Callable[[str], None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    address = bucket.format("moved")
    killed(address, tmp_path / "first", last=12)
    elsewhere("second")
    resume_training(address, 13, 30)  # after waiting for the first, which is dead
    assert "to see whether it is still running" in caplog.text
    assert steps_of(address) == list(range(1, 31))
    elsewhere("first")
    assert trustlens.open_run(staging_folder(remote_of(address))).last_step == 13
    assert main(["repair", address]) == 2
    assert "was resumed on another machine" in capsys.readouterr().err
    resume_training(address, 31, 32)
    kept = next(staging_folder(remote_of(address)).parent.glob("moved-*-*"))
    assert str(kept) in caplog.text
    assert trustlens.open_run(kept).last_step == 13
    assert steps_of(address) == list(range(1, 33))
    assert trustlens.open_run(address).status == "closed"


def test_a_writer_wrongly_considered_dead_does_no_harm(
    bucket: str,
    elsewhere: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    address = bucket.format("asleep")
    monkeypatch.setattr(uploading, "INTERVAL", 600.0)  # nothing is uploaded without a flush
    model, optimizer = training()
    asleep = trustlens.record(optimizer, address, model=model)
    step(model, optimizer, 1)
    asleep.flush()
    asleep._pipeline._uploader._lease._released.set()  # the lease is no longer refreshed
    elsewhere("other")
    monkeypatch.setattr(uploading, "INTERVAL", 0.1)
    resume_training(address, 2, 5)
    for number in range(2, 9):
        step(model, optimizer, number)
    asleep.close()
    assert "another recording has taken over" in caplog.text
    assert str(asleep._pipeline._uploader._staging) in caplog.text
    assert trustlens.open_run(asleep._pipeline._uploader._staging).last_step == 8
    assert steps_of(address) == [1, 2, 3, 4, 5]
    assert trustlens.open_run(address).status == "closed"


def test_segments_that_another_writer_uploaded_are_deleted(bucket: str, tmp_path: Path) -> None:
    remote, staged = remote_of(bucket.format("strays")), tmp_path / "staging"
    uploader = uploaded(staged, remote)
    data = (staged / "layers" / "000001.parquet").read_bytes()
    (remote / "layers").put("000099.parquet", data)
    (remote / "layers").put("notes.txt", b"of another user")
    uploader.close()
    names = {entry.name for entry in (remote / "layers").entries()}
    assert "000099.parquet" not in names
    assert read_table(remote, "layers", ["step"]).num_rows == 200


def test_cleaning_the_cache_deletes_nothing_from_the_store(
    bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    address = bucket.format("cleaned")
    model, optimizer = training()
    recorder = trustlens.record(optimizer, address, model=model)
    step(model, optimizer, 1)
    recorder.flush()
    while staging_folder(remote_of(address)).exists():  # files may be written meanwhile
        shutil.rmtree(staging_folder(remote_of(address)), ignore_errors=True)
    step(model, optimizer, 2)
    recorder.flush()
    recorder.close()
    assert "files were removed from" in caplog.text
    assert steps_of(address) == [1]


@pytest.mark.parametrize("note", [None, "not JSON", "unchanged"])
def test_an_incomplete_staging_folder_deletes_nothing_from_the_store(
    bucket: str, tmp_path: Path, note: str | None
) -> None:
    remote, staged, half = remote_of(bucket.format("half")), tmp_path / "staging", tmp_path / "half"
    uploader = uploaded(staged, remote)
    shutil.copytree(staged, half)
    uploader.close()
    (half / "layers" / "000001.parquet").unlink()
    if note is None:
        (half / ".uploaded.json").unlink()
    elif note != "unchanged":
        (half / ".uploaded.json").write_text(note)
    assert not uploader_of(half, remote).finish()
    assert read_table(remote, "layers", ["step"]).num_rows == 200


def test_an_incomplete_staging_folder_is_not_resumed(
    bucket: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = bucket.format("halved")
    train(address, last=3)
    remote, staged = remote_of(address), staging_folder(remote_of(address))
    for name in staging.files_of(remote):
        if name != "layers/000000.parquet":
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            (staged / name).write_bytes((remote / name).open().read())
    resume_training(address, 4, 5)
    assert "local files are missing" in caplog.text
    assert trustlens.open_run(address).matrix("nonfinite").index.tolist() == [1, 2, 3, 4, 5]


def test_which_files_are_deleted_from_the_store() -> None:
    known, here = staging.Version(1, 1), {"run.json", "layers/000001.parquet"}
    assert uploading._should_delete("journal/layers-000001.arrow", known, here)
    assert not uploading._should_delete("journal/layers-000002.arrow", known, here)
    assert uploading._should_delete("journal/layers-000002.arrow", None, here)
    assert uploading._should_delete("overview/3/000000-000000.parquet", known, here)
    assert not uploading._should_delete(".replaced/000001/layers/000000.parquet", known, here)


def test_a_run_cannot_be_resumed_during_a_repair(
    bucket: str,
    elsewhere: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = bucket.format("repaired")
    killed(address, tmp_path / "cache", last=3)
    original = uploading.repair
    refused: list[str] = []

    def slow(directory: Path) -> Any:
        elsewhere("other")
        with pytest.raises(UsageError) as caught:
            resume_training(address, 4, 5)
        refused.append(str(caught.value))
        return original(directory)

    monkeypatch.setattr(uploading, "repair", slow)
    assert main(["repair", address]) == 0
    assert "another process is recording" in refused[0]
    assert steps_of(address) == [1, 2, 3, 4]


def test_waiting_counts_only_answered_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leasing, "REFRESH_INTERVAL", 0.1)
    checks = leasing._CHECKS
    answers = iter(["a 1", "a 1", *["a 1"] * (checks - 1), None, *["a 1"] * (checks - 1), "a 2"])

    def answered(self: leasing.Lease) -> str:
        answer = next(answers)
        if answer is None:
            raise OSError("no network")
        return answer

    monkeypatch.setattr(leasing.Lease, "_text", answered)
    lease = leasing.Lease(RemoteLocation(None, "bucket/run", "s3://bucket/run"))
    with pytest.raises(UsageError, match="another process is recording"):
        lease.take()
    assert next(answers, "all") == "all"


class Broken:
    """A file whose store fails after it was opened."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def read(self, _: int) -> bytes:
        raise OSError("AWS Error NETWORK_CONNECTION")


def test_an_interrupted_download_raises(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = bucket.format("fetched")
    train(address, last=3)
    opened = RemoteLocation.open

    def broken(self: RemoteLocation, entry: Entry | None = None) -> Any:
        return opened(self, entry) if self.name == "run.json" else Broken()

    with monkeypatch.context() as patch:
        patch.setattr(RemoteLocation, "open", broken)
        with pytest.raises(RunError, match=r"cannot be read \(AWS Error NETWORK_CONNECTION\)"):
            train(address, resume=True)
    assert not (locate(address) / ".lock").exists()


def test_a_journal_that_is_sealed_between_opening_and_reading(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = bucket.format("sealed")
    model, optimizer = training()
    opened = RemoteLocation.open
    deleted: list[RemoteLocation] = []

    def delete_once(self: RemoteLocation, *entry: Any) -> Any:
        found = opened(self, *entry)
        if not deleted and self.name.startswith("layers-"):
            deleted.append(self)
            self.filesystem.delete_file(self.filesystem_path)
        return found

    with trustlens.record(optimizer, address, model=model) as recorder:
        step(model, optimizer, 1)
        recorder.flush()
        monkeypatch.setattr(RemoteLocation, "open", delete_once)
        assert trustlens.open_run(address).layers().empty
        assert deleted


def test_an_interrupted_close_still_completes(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = bucket.format("interrupted")
    model, optimizer = training()
    recorder = trustlens.record(optimizer, address, model=model)
    step(model, optimizer, 1)
    thread = recorder._pipeline._uploader._thread

    def interrupted() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(thread, "join", interrupted)
        with pytest.raises(KeyboardInterrupt):
            recorder.close()
    thread.join(20)
    assert not thread.is_alive()
    assert not (locate(address) / ".lock").exists()
    assert not staging_folder(remote_of(address)).exists()
    assert trustlens.open_run(address).status == "closed"


def test_a_recording_that_cannot_begin_leaves_nothing_on_the_store(
    bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    address = bucket.format("shapes")
    train(address, last=3)
    other = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Linear(6, 2))
    with pytest.raises(UsageError, match="of shape"):
        trustlens.record(torch.optim.SGD(other.parameters()), address, model=other, resume=True)
    assert not (locate(address) / ".lock").exists()
    resume_training(address, 4, 5)
    assert "to see whether it is still running" not in caplog.text
    assert steps_of(address) == [1, 2, 3, 4, 5]


def test_an_interrupted_download_is_started_again(bucket: str) -> None:
    address = bucket.format("broken")
    train(address, last=3)
    staged = staging_folder(remote_of(address))
    (staged / "layers").mkdir(parents=True)
    (staged / "layers" / "000007.parquet").write_bytes(b"half of")
    resume_training(address, 4, 5)
    assert steps_of(address) == [1, 2, 3, 4, 5]
    assert not list(staged.parent.iterdir())


def test_a_repair_that_cannot_upload_says_so(
    bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = bucket.format("refused")
    killed(address, tmp_path / "cache", last=3)
    put = RemoteLocation.put

    def full(self: RemoteLocation, name: str, data: bytes) -> None:
        if name != ".lock":
            raise OSError(28, "no room")
        put(self, name, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RemoteLocation, "put", full)
        assert main(["repair", address]) == 2
    assert "not all of" in capsys.readouterr().err
    assert main(["repair", address]) == 0
    assert "is uploaded completely" in capsys.readouterr().out
    run = trustlens.open_run(address)
    assert run.last_step == 4
    assert "not uploaded" not in " ".join(run.missing())


def test_files_without_a_run_are_not_mixed_with_a_new_one(bucket: str) -> None:
    address = bucket.format("rest")
    train(address)
    remote = remote_of(address)
    remote.delete("run.json")
    with pytest.raises(UsageError, match="an upload was interrupted"):
        train(address)
    with pytest.raises(UsageError, match="an upload was interrupted"):
        train(address, resume=True)


def test_copies_of_a_rollback_are_kept_on_the_store(bucket: str) -> None:
    address = bucket.format("rollback")
    train(address, last=20)
    model, optimizer = training()
    with trustlens.record(optimizer, address, model=model, resume=True) as recorder:
        recorder.load_state_dict({"step": 10})
        step(model, optimizer, 11)
    assert steps_of(address) == list(range(1, 12))
    kept = (locate(address) / ".replaced" / "000001" / "layers").entries()
    assert [entry.name for entry in kept] == ["000000.parquet"]


def test_a_staging_folder_belongs_to_one_server(
    bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = bucket.format("run")
    killed(address, Path(os.environ["XDG_CACHE_HOME"]), last=3)
    other = locate(address.replace(str(PORT), "59999"))
    assert isinstance(other, RemoteLocation)
    assert staging_folder(other) != staging_folder(remote_of(address))
    remote = remote_of(address)
    remote.filesystem.delete_dir(
        remote.filesystem_path
    )  # as if the environment names another account
    assert main(["repair", address]) == 2
    assert "although one was uploaded to it" in capsys.readouterr().err
    assert trustlens.open_run(staging_folder(remote)).last_step == 4


def test_an_address_that_cannot_be_written_raises_at_once(bucket: str) -> None:
    address = bucket.format("run").replace("s3://bucket-", "s3://no-bucket-")
    for _ in range(2):  # the first attempt leaves nothing
        with pytest.raises(UsageError, match=r"'s3://no-bucket-.*' cannot be written \("):
            train(address)


def test_a_store_that_raises_file_not_found_on_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(uploading, "INTERVAL", 0.1)
    monkeypatch.setattr(uploading, "PATIENCE", 0.3)
    model, optimizer = training()
    recorder = trustlens.record(optimizer, "memory://runs/gone", model=model)
    put = RemoteLocation.put

    def not_found(self: RemoteLocation, name: str, data: bytes) -> None:
        if name != ".lock":
            raise FileNotFoundError(name)
        put(self, name, data)

    monkeypatch.setattr(RemoteLocation, "put", not_found)
    step(model, optimizer, 1)
    recorder.close()
    assert "not all of 'memory://runs/gone' could be uploaded" in caplog.text
    assert trustlens.open_run(staging_folder(locate("memory://runs/gone"))).last_step == 1


def test_secrets_of_an_address_are_not_shown() -> None:
    options = "endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1"
    shown = remote_location(f"s3://name:word@bucket/runs/adam?{options}")
    assert shown.whole_address == f"s3://bucket/runs/adam?{options}"
    assert str(shown / "run.json") == "s3://bucket/runs/adam/run.json"
