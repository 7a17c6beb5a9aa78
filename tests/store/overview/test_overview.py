"""The overview: every bucket agrees with the rows, whatever happened to the files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trustlens
from tests.support.runs import layers_table, make_run, run_info, steps_table, synthetic_values
from trustlens.schema import QUANTITIES
from trustlens.store.downsampled import Downsampled, read_downsampled
from trustlens.store.layout import sealed_path
from trustlens.store.location import Entry, LocalLocation
from trustlens.store.overview.builder import OverviewBuilder
from trustlens.store.overview.format import finest_level, pieces
from trustlens.store.reader import RunFiles, read_table
from trustlens.store.repair import repair
from trustlens.store.row_filter import RowFilter
from trustlens.store.run_info import RecordingInfo, RunInfo
from trustlens.store.segments.files import sealed_numbers
from trustlens.store.writer import RunWriter

LAYERS = ["b", "a", "c"]


def record(
    directory: Path, steps: np.ndarray, *, segment: int = 90, close: bool = True, every: int = 1
) -> RunWriter:
    """Write a run of three layers in many segments; some values are not finite."""
    info = run_info(layers=LAYERS)
    info = RunInfo(
        info.name, info.created, layers=info.layers, recording=RecordingInfo(every=every)
    )
    writer = RunWriter(directory, info, segment_rows=segment)
    values = synthetic_values(len(steps), len(LAYERS), seed=3)
    values["weight_norm"][7::50, 1] = np.nan
    values["weight_norm"][9::70] = np.inf
    values["grad_norm"][20:400, 2] = np.nan
    values["zero_grad"][:] = np.arange(len(steps))[:, None]
    del values["surprise"]
    for begin in range(0, len(steps), 10):
        part = slice(begin, begin + 10)
        rows = {name: each[part] for name, each in values.items()}
        writer.append("layers", layers_table(steps[part], LAYERS, rows))
        writer.append("steps", steps_table(steps[part]))
    writer.flush()
    if close:
        writer.close(writer.info)
    return writer


def check_against_rows(
    directory: Path, quantity: str, points: int, span: tuple[int, int]
) -> Downsampled:
    """Compare the buckets that are read with aggregates of the rows, in float64."""
    found = read_downsampled(RunFiles(directory), [quantity], LAYERS, span, points)[quantity]
    assert len(found.steps) <= points
    assert found.steps[0] <= span[0]
    assert found.steps[-1] <= span[1] < found.steps[-1] + found.width
    values, valid = matrix(directory, quantity, int(found.steps[-1] + found.width))
    for i, begin in enumerate(found.steps):
        inside = slice(begin, begin + found.width)
        finite = valid[inside] & np.isfinite(values[inside])
        assert found.rows[i].tolist() == valid[inside].sum(axis=0).tolist()
        assert found.finite[i].tolist() == finite.sum(axis=0).tolist()
        some = finite.any(axis=0)
        each = [values[inside][finite[:, j], j] for j in np.flatnonzero(some)]
        assert found.low is not None
        assert found.high is not None
        for got, of in ((found.low, np.min), (found.mean, np.mean), (found.high, np.max)):
            assert np.isnan(got[i]).tolist() == (~some).tolist()
            np.testing.assert_allclose(got[i, some], [of(part) for part in each], rtol=3e-7)
    return found


def matrix(directory: Path, quantity: str, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a quantity as float64 (end, layers), and a mask of the values that are not null."""
    table = read_table(directory, "layers", ["step", "layer", quantity])
    step = np.array(table["step"])
    column = np.array([LAYERS.index(name) for name in table["layer"].to_pylist()], int)
    values, valid = np.zeros((end, len(LAYERS))), np.zeros((end, len(LAYERS)), bool)
    inside = step < end
    values[step[inside], column[inside]] = np.array(table[quantity], np.float64)[inside]
    valid[step[inside], column[inside]] = np.array(table[quantity].is_valid())[inside]
    return values, valid


def check_each_level(directory: Path, last: int) -> None:
    for points in (1, 2, 5, 40):
        check_against_rows(directory, "weight_norm", points, (1, last))
    check_against_rows(directory, "weight_norm", 7, (last // 3, last // 2))


@pytest.mark.parametrize("close", [True, False])
@pytest.mark.parametrize("quantity", ["weight_norm", "grad_norm", "surprise", "zero_grad"])
def test_buckets_agree_with_the_rows(tmp_path: Path, quantity: str, close: bool) -> None:
    writer = record(tmp_path, np.arange(1, 701), close=close)
    assert {piece.level for piece in pieces(tmp_path)} == {3, 4, 5}
    widths = {check_against_rows(tmp_path, quantity, n, (1, 700)).width for n in (1, 2, 9, 33, 300)}
    assert widths == {64, 128, 512, 1024}
    check_against_rows(tmp_path, quantity, 6, (200, 350))
    check_against_rows(tmp_path, quantity, 6, (650, 1700))
    del writer


def test_each_level_covers_every_segment_once_in_few_files(tmp_path: Path) -> None:
    record(tmp_path, np.arange(1, 3001))
    count = len(sealed_numbers(tmp_path, "layers"))
    assert count == 100
    levels: dict[int, list[int]] = {}
    for piece in pieces(tmp_path):
        levels.setdefault(piece.level, []).extend(range(piece.first, piece.last + 1))
    assert {k: sorted(numbers) for k, numbers in levels.items()} == {
        3: list(range(100)),
        4: list(range(100)),
        5: list(range(96)),
        6: list(range(64)),
    }
    assert len(pieces(tmp_path)) == 10 + 10 + 6 + 1  # 6 × 16 + 4, 64 + 9 × 4, 6 × 16, 64


def test_an_extreme_of_one_step_is_in_every_level(tmp_path: Path) -> None:
    steps = 2000
    values = synthetic_values(steps, 2)["grad_norm"]
    values[1234, 1] = 7e8
    path = make_run(tmp_path / "run", layers=["a", "b"], steps=steps, values={"grad_norm": values})
    run = trustlens.open_run(path)
    for points in (1, 3, 10, 30, 500):
        read = run.downsample("grad_norm", points)
        bucket = (1235 - read.steps[0]) // read.width
        assert read.high is not None
        assert read.high[bucket, 1] == np.float32(7e8)
        assert (read.high[:, 0] < 1e4).all()


def test_missing_files_are_built_again_and_until_then_rows_are_read(
    tmp_path: Path,
) -> None:
    record(tmp_path, np.arange(1, 701))
    expected = {piece: piece.path(tmp_path).read_bytes() for piece in pieces(tmp_path)}
    rng = np.random.default_rng(1)
    for _ in range(3):
        for piece in list(expected):
            if rng.random() < 0.4:
                piece.path(tmp_path).unlink(missing_ok=True)
        check_each_level(tmp_path, 700)
        OverviewBuilder(tmp_path, 3).complete()
        check_each_level(tmp_path, 700)
    for piece in pieces(tmp_path)[1:]:
        piece.path(tmp_path).unlink()
    check_each_level(tmp_path, 700)
    repair(tmp_path)
    assert {piece: piece.path(tmp_path).read_bytes() for piece in pieces(tmp_path)} == expected


def test_a_rollback_removes_rows_from_every_level(tmp_path: Path) -> None:
    record(tmp_path, np.arange(1, 701))
    writer = RunWriter(tmp_path, run_info(), resume=lambda info: info, segment_rows=90)
    writer.rollback(500, {"a": 490})
    check_each_level(tmp_path, 700)
    steps = np.arange(501, 801)
    values = {"weight_norm": np.full((len(steps), 3), 5.0)}
    for begin in range(0, len(steps), 10):
        rows = {"weight_norm": values["weight_norm"][begin : begin + 10]}
        writer.append("layers", layers_table(steps[begin : begin + 10], LAYERS, rows))
    writer.flush()
    check_each_level(tmp_path, 800)
    writer.close(writer.info)
    check_each_level(tmp_path, 800)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 100), st.integers(1, 400), st.integers(20, 200), st.integers(1, 50))
def test_buckets_of_any_length_and_period(
    tmp_path_factory: pytest.TempPathFactory, every: int, count: int, segment: int, points: int
) -> None:
    directory = tmp_path_factory.mktemp("run") / "run"
    steps = np.arange(count) * every + 1
    record(directory, steps, segment=segment, every=every)
    assert len(pieces(directory)) > 0
    check_against_rows(directory, "weight_norm", points, (1, int(steps[-1])))


@pytest.mark.parametrize(
    ("every", "level"), [(1, 3), (2, 4), (4, 4), (5, 5), (16, 5), (17, 6), (64, 6), (1000, 8)]
)
def test_the_finest_buckets_hold_64_to_256_recorded_steps(every: int, level: int) -> None:
    info = RunInfo("run", "", recording=RecordingInfo(every=every))
    assert finest_level(info) == level
    assert 64 <= 4**level / every <= 256


def test_derived_quantities_in_buckets(tmp_path: Path) -> None:
    run = trustlens.open_run(make_run(tmp_path / "run", layers=3, steps=300))
    norm, weight = run.downsample("update_norm", 4), run.downsample("weight_norm", 4)
    rms, ratio = run.downsample("update_rms", 4), run.downsample("update_ratio", 4)
    assert norm.low is not None
    np.testing.assert_allclose(rms.low, norm.low / 10)  # 100 elements a layer
    np.testing.assert_allclose(rms.mean, norm.mean / 10)
    np.testing.assert_allclose(ratio.mean, norm.mean / weight.mean)
    assert ratio.low is None
    assert ratio.high is None
    assert QUANTITIES["update_ratio"].derived


def test_other_files_in_the_overview_are_ignored(tmp_path: Path) -> None:
    record(tmp_path, np.arange(1, 501))
    (tmp_path / "overview" / "notes.txt").write_text("mine")
    (tmp_path / "overview" / "3" / "notes.parquet").write_text("mine")
    check_each_level(tmp_path, 500)


def record_opened_folders(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which the folder of each file that is opened is appended."""
    names: list[str] = []

    original = LocalLocation.open

    def recording_open(self: LocalLocation, entry: Entry | None = None) -> pa.NativeFile:
        names.append(self.path.parent.name)
        return original(self, entry)

    monkeypatch.setattr(LocalLocation, "open", recording_open)
    return names


def test_each_file_lists_its_segments(tmp_path: Path) -> None:
    record(tmp_path, np.arange(1, 3001))
    for piece in pieces(tmp_path):
        listed = json.loads(pq.read_metadata(piece.path(tmp_path)).metadata[b"trustlens.files"])
        paths = [sealed_path(tmp_path, "layers", n) for n in range(piece.first, piece.last + 1)]
        steps = [pq.read_table(path)["step"].to_numpy() for path in paths]
        assert listed == [
            [piece.first + i, path.stat().st_size, step.min(), step.max()]
            for i, (path, step) in enumerate(zip(paths, steps, strict=True))
        ]


def test_reading_some_steps_opens_few_of_many_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(tmp_path, np.arange(1, 3001))
    names = record_opened_folders(monkeypatch)
    files = RunFiles(tmp_path)
    assert files.span("layers") == (1, 3000)
    assert names == ["6", "3", "3", "4"]  # overview files of 64, 16, 16 and the last 4 segments
    found = files.read("layers", ["step"], RowFilter(first=2001, last=2010))
    assert sorted(found["step"].to_pylist()) == [n for n in range(2001, 2011) for _ in LAYERS]
    assert names.count("layers") == 2  # one segment: its footer, then its rows


@pytest.mark.parametrize(
    "harm", ["another segment", "no overview", "a damaged overview", "no list of segments"]
)
def test_segments_are_opened_if_the_overview_does_not_list_them(tmp_path: Path, harm: str) -> None:
    record(tmp_path, np.arange(1, 701))
    expected = read_table(tmp_path, "layers", ["step", "layer"])
    if harm == "another segment":  # with other steps, written by another tool
        path = sealed_path(tmp_path, "layers", 5)
        rows = pq.read_table(path)
        step = pc.add(rows["step"], 5000)
        rows = rows.set_column(0, rows.schema.field("step"), step)
        pq.write_table(rows.replace_schema_metadata(None), path)
        expected = read_table(tmp_path, "layers", ["step", "layer"])
    for piece in pieces(tmp_path):
        if harm == "no overview":
            piece.path(tmp_path).unlink()
        elif harm == "a damaged overview":
            piece.path(tmp_path).write_bytes(b"PAR1 and no more")
        elif harm == "no list of segments":
            table = pq.read_table(piece.path(tmp_path))
            pq.write_table(table.replace_schema_metadata(None), piece.path(tmp_path))
    step = expected["step"].to_numpy()
    for first, last in ((1, 1), (100, 180), (699, 7000)):
        found = read_table(tmp_path, "layers", ["step", "layer"], RowFilter(first, last))
        inside = np.sort(step[(first <= step) & (step <= last)])
        assert np.sort(found["step"].to_numpy()).tolist() == inside.tolist()
    assert RunFiles(tmp_path).span("layers") == (step.min(), step.max())


def test_a_rollback_to_the_start(tmp_path: Path) -> None:
    writer = record(tmp_path, np.arange(1, 701))
    writer = RunWriter(tmp_path, run_info(), resume=lambda info: info, segment_rows=90)
    writer.rollback(0, {})
    assert RunFiles(tmp_path).span("layers") is None
    for begin in range(1, 701, 10):
        steps = np.arange(begin, begin + 10)
        rows = {"weight_norm": np.full((10, 3), 5.0)}
        writer.append("layers", layers_table(steps, LAYERS, rows))
    writer.close(writer.info)
    assert RunFiles(tmp_path).span("layers") == (1, 700)
    check_each_level(tmp_path, 700)


def test_a_rollback_while_recording_leaves_no_removed_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="trustlens")
    writer = record(tmp_path, np.arange(1, 691), close=False)  # all rows are sealed
    writer.rollback(300, {})
    for begin in range(301, 1201, 10):
        rows = {"weight_norm": np.full((10, 3), 5.0)}
        writer.append("layers", layers_table(np.arange(begin, begin + 10), LAYERS, rows))
    writer.flush()
    check_each_level(tmp_path, 1200)
    writer.close(writer.info)
    check_each_level(tmp_path, 1200)
    rebuilt = overview_files(tmp_path)
    for path in rebuilt:
        path.unlink()
    OverviewBuilder(tmp_path, 3).complete()
    assert overview_files(tmp_path) == rebuilt
    assert caplog.text == ""  # the writer did not look for removed files


def overview_files(directory: Path) -> dict[Path, bytes]:
    """Return the files of a run's overview."""
    return {
        piece.path(directory): piece.path(directory).read_bytes() for piece in pieces(directory)
    }


def restore(files: dict[Path, bytes]) -> None:
    """Write those files of the overview again that do not exist."""
    for path, data in files.items():
        if not path.exists():
            path.write_bytes(data)


@pytest.mark.parametrize("died", ["after a join", "after a rollback", "while removing files"])
def test_files_that_should_not_exist_are_found(tmp_path: Path, died: str) -> None:
    record(tmp_path, np.arange(1, 451))
    before = overview_files(tmp_path)  # of 15 segments; nothing is joined yet
    if died == "after a join":
        resumed(tmp_path, np.arange(451, 701))
    elif died == "after a rollback":
        resumed(tmp_path, np.arange(201, 701), rollback=200)
    else:
        resumed(tmp_path, np.arange(451, 701))
        for path in overview_files(tmp_path):
            if path.parent.name == "3":
                path.unlink()
    expected = overview_files(tmp_path)
    restore({path: data for path, data in before.items() if died != "while removing files"})
    assert (set(overview_files(tmp_path)) > set(expected)) == (died != "while removing files")
    assert OverviewBuilder(tmp_path, 3).complete()
    check_each_level(tmp_path, 700)
    assert {piece.level for piece in pieces(tmp_path)} == {3, 4, 5}
    if died != "while removing files":
        assert overview_files(tmp_path) == expected


def resumed(directory: Path, steps: np.ndarray, rollback: int | None = None) -> None:
    """Resume a run, after a rollback to a step if that is given."""
    writer = RunWriter(directory, run_info(), resume=lambda info: info, segment_rows=90)
    if rollback is not None:
        writer.rollback(rollback, {})
    for begin in range(0, len(steps), 10):
        some = steps[begin : begin + 10]
        rows = {"weight_norm": np.full((len(some), 3), 5.0)}
        writer.append("layers", layers_table(some, LAYERS, rows))
    writer.close(writer.info)


def test_a_damaged_file_is_built_again(tmp_path: Path) -> None:
    record(tmp_path, np.arange(1, 701))
    expected = overview_files(tmp_path)
    for path in list(expected)[::2]:
        path.write_bytes(expected[path][:-9])
    assert repair(tmp_path) == []
    assert overview_files(tmp_path) == expected


@pytest.mark.parametrize("repaired_by", ["repair", "a recording", "its close"])
def test_a_file_with_a_damaged_page_is_built_again(tmp_path: Path, repaired_by: str) -> None:
    record(tmp_path, np.arange(1, 451))
    for path in overview_files(tmp_path):
        if path.parent.name != "3":
            path.unlink()  # as if the process died before it built them
        elif path.name.startswith(("000001", "000002", "000006")):
            data = bytearray(path.read_bytes())
            data[4:60] = b"\xff" * 56
            path.write_bytes(data)
    if repaired_by == "repair":
        assert repair(tmp_path) == []
    else:
        resumed(tmp_path, np.arange(451, 901 if repaired_by == "a recording" else 461))
        check_each_level(tmp_path, 450)
        return
    check_each_level(tmp_path, 450)
    rebuilt = overview_files(tmp_path)
    for path in rebuilt:
        path.unlink()
    assert OverviewBuilder(tmp_path, 3).complete()
    assert overview_files(tmp_path) == rebuilt


def test_a_reader_needs_no_second_attempt_if_segments_are_sealed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = record(tmp_path, np.arange(1, 691), close=False)
    list_pieces, calls = RunFiles.pieces, [0]

    def append(steps: np.ndarray) -> None:
        rows = {"weight_norm": np.ones((len(steps), 3))}
        writer.append("layers", layers_table(steps, LAYERS, rows))

    def sealing_meanwhile(self: RunFiles) -> object:
        calls[0] += 1
        if calls[0] % 2 == 0:  # an attempt lists the files twice, the second time before it reads
            # The first 20 are sealed together with the 10 appended before.
            append(np.arange(20) + 691 + 30 * calls[0])
            append(np.arange(10) + 711 + 30 * calls[0])
        return list_pieces(self)

    append(np.arange(10) + 691)
    writer.flush()
    monkeypatch.setattr(RunFiles, "pieces", sealing_meanwhile)
    found = read_downsampled(RunFiles(tmp_path), ["weight_norm"], LAYERS, (1, 700), 40)
    assert found["weight_norm"].rows.sum(axis=0).tolist() == [700, 700, 700]
    assert calls == [2]


def test_cached_buckets_are_not_used_after_a_rollback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(tmp_path, np.arange(1, 701))
    files, contents = RunFiles(tmp_path), RunFiles.contents
    read_downsampled(files, ["weight_norm"], LAYERS, (1, 700), 40)  # and cache it

    def with_rollback(self: RunFiles, table: str) -> object:
        monkeypatch.setattr(RunFiles, "contents", contents)
        resumed(tmp_path, np.arange(301, 701), rollback=300)
        return contents(self, table)

    monkeypatch.setattr(RunFiles, "contents", with_rollback)
    found = read_downsampled(files, ["weight_norm"], LAYERS, (1, 700), 40)["weight_norm"]
    assert found.rows.tolist() == [[64] * 3] * 10 + [[60] * 3]


@pytest.mark.parametrize(
    "name",
    [
        "overview/3/000022-000000.parquet",
        "overview/3/000000-1000000000.parquet",
        "overview/03/000000-000015.parquet",
        "overview/400/000000-000000.parquet",
        "layers/1000000000.parquet",
    ],
)
def test_invalid_file_names_do_no_harm(tmp_path: Path, name: str) -> None:
    record(tmp_path, np.arange(1, 701))
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    some = next(iter(pieces(tmp_path))).path(tmp_path)
    if name.startswith("layers"):
        some = sealed_path(tmp_path, "layers", 3)
        path.write_bytes(some.read_bytes())
        some.unlink()
    else:
        path.write_bytes(some.read_bytes())
    if "1000000000.p" not in name:
        check_each_level(tmp_path, 700)
    else:  # its name claims other segments than it covers
        RunFiles(tmp_path).span("layers")
        read_downsampled(RunFiles(tmp_path), ["weight_norm"], LAYERS, (1, 700), 40)
    repair(tmp_path)
    check_each_level(tmp_path, 700)


@pytest.mark.parametrize(
    "listed",
    [[0, 9, 10**30, 10**30], [0, 9, -5, 7], [0, 9, 8, 7], [0, 9, True, 7], [0], None, [[]]],
)
def test_impossible_steps_in_a_list_of_segments_are_ignored(tmp_path: Path, listed: object) -> None:
    record(tmp_path, np.arange(1, 701))
    for piece in pieces(tmp_path):
        table = pq.read_table(piece.path(tmp_path))
        metadata = dict(table.schema.metadata or {})
        entries = [listed] * piece.count
        for i, entry in enumerate(entries):
            if isinstance(entry, list) and len(entry) == 4:
                number = piece.first + i
                size = sealed_path(tmp_path, "layers", number).stat().st_size
                entries[i] = [number, size, *entry[2:]]
        metadata[b"trustlens.files"] = json.dumps(entries).encode()
        pq.write_table(table.replace_schema_metadata(metadata), piece.path(tmp_path))
    assert RunFiles(tmp_path).span("layers") == (1, 700)
    assert len(read_table(tmp_path, "layers", ["step"], RowFilter(100, 109))) == 30
