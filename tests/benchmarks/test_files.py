"""The benchmark of a run's files: sizes are right, and all engines give the same answers."""

from __future__ import annotations

import csv
import json
import math
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import trustlens
from trustlens.schema import RECORDED
from trustlens.store.reader import fingerprint

REPOSITORY = Path(__file__).parents[2]
STEPS = 450  # more than fit in one segment, so that there are two
LAYERS = 300


@pytest.fixture(scope="module")
def suite() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPOSITORY)
        from benchmarks.files import (
            formats,
            python_loop,
            queries,
            recorded_run,
            run,
            table,
            writing,
        )

        yield SimpleNamespace(
            files=run,
            formats=formats,
            python_loop=python_loop,
            queries=queries,
            run=recorded_run,
            table=table,
            writing=writing,
        )


@pytest.fixture(scope="module")
def runs(suite: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    suite.run.recorded(folder / f"steps-{STEPS}", STEPS)
    return folder


@pytest.fixture(scope="module")
def run(runs: Path) -> Path:
    return runs / f"steps-{STEPS}"


@pytest.fixture(scope="module")
def rows_read(run: Path) -> pd.DataFrame:
    """The rows of the run as pandas reads them, without trustlens."""
    rows = pd.read_parquet(run / "layers")
    rows["layer"] = rows["layer"].astype(str)
    return rows.sort_values(["layer", "step"], ignore_index=True)


def test_the_run_looks_like_a_training(suite: Any, rows_read: pd.DataFrame) -> None:
    assert len(rows_read) == STEPS * LAYERS
    assert not rows_read.isna().any(axis=None)
    one = rows_read[rows_read["layer"] == "layers.17"]
    assert one["grad_norm"].nunique() > 0.99 * STEPS  # noise
    rates = one["learning_rate"].to_numpy()
    assert rates.argmax() == STEPS // 100 - 1  # a hundredth of the run warms up
    assert (np.diff(rates[STEPS // 100 :]) < 0).all()
    late, early = rows_read[rows_read["step"] > STEPS - 100], rows_read[rows_read["step"] <= 100]
    assert late["update_norm"].mean() < 0.5 * early["update_norm"].mean()


def test_the_run_is_recorded_once(suite: Any, run: Path) -> None:
    before = fingerprint(run)
    assert suite.run.recorded(run, STEPS) == run
    assert fingerprint(run) == before
    with pytest.raises(RuntimeError, match="is not the run to be measured"):
        suite.run.recorded(run, STEPS + 1)
    with pytest.raises(RuntimeError, match="is not the run to be measured"):
        suite.run.recorded(run.parent, STEPS)


def test_a_slice_has_the_rows_in_the_order_of_recording(
    suite: Any, run: Path, rows_read: pd.DataFrame
) -> None:
    rows = suite.formats.slice_of(run, 300, 100)
    assert rows["step"].to_pylist() == [step for step in range(300, 400) for _ in range(LAYERS)]
    assert rows["layer"].to_pylist()[:LAYERS] == [f"layers.{place}" for place in range(LAYERS)]
    there = rows_read[rows_read["step"].between(300, 399)].reset_index(drop=True)
    same_rows(rows.to_pandas(), there)
    sizes = [batch.num_rows for batch in suite.formats.batches(rows)]
    assert sizes == [64 * LAYERS, 36 * LAYERS]


def same_rows(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    found["layer"] = found["layer"].astype(str)
    found = found.sort_values(["layer", "step"], ignore_index=True)
    pd.testing.assert_frame_equal(
        found[wanted.columns], wanted, check_dtype=False, rtol=0, atol=0, check_exact=True
    )


def from_sqlite(folder: Path) -> pd.DataFrame:
    with sqlite3.connect(folder / "layers.db") as file:
        return pd.read_sql("SELECT * FROM layers", file)


def from_duckdb(folder: Path) -> pd.DataFrame:
    import duckdb

    with duckdb.connect(str(folder / "layers.duckdb"), read_only=True) as file:
        return file.sql("SELECT * FROM layers").df()


def from_csv(folder: Path) -> pd.DataFrame:
    with (folder / "layers.csv").open(encoding="utf-8") as file:
        rows = pd.DataFrame(list(csv.DictReader(file)))
    floats = [name for name in rows if name not in ("step", "layer")]
    return rows.astype({"step": int} | dict.fromkeys(floats, np.float32))


def from_json_lines(folder: Path) -> pd.DataFrame:
    lines = (folder / "layers.jsonl").read_text(encoding="utf-8").splitlines()
    return pd.DataFrame([json.loads(line) for line in lines])


def from_tensorboard(folder: Path) -> pd.DataFrame:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    scalars = [
        (*tag.split("/"), event.step, event.value)
        for tag in reader.Tags()["scalars"]
        for event in reader.Scalars(tag)
    ]
    rows = pd.DataFrame(scalars, columns=["quantity", "layer", "step", "value"])
    rows = rows.pivot_table(index=["layer", "step"], columns="quantity", values="value")
    return rows.reset_index().rename_axis(columns=None)


READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    "trustlens": lambda folder: pd.read_parquet(folder / "run" / "layers"),
    "TensorBoard": from_tensorboard,
    "CSV": from_csv,
    "JSONL": from_json_lines,
    "SQLite": from_sqlite,
    "DuckDB": from_duckdb,
    "Parquet, pyarrow": lambda folder: pq.read_table(folder / "layers.parquet").to_pandas(),
    "Parquet, Polars": lambda folder: pq.read_table(folder / "layers.parquet").to_pandas(),
}


@pytest.mark.parametrize("name", READERS)
def test_each_format_stores_all_values(
    suite: Any, run: Path, rows_read: pd.DataFrame, tmp_path: Path, name: str
) -> None:
    form = suite.formats.FORMATS[name]
    form.write(form.prepare(suite.formats.slice_of(run, 436, 3)), tmp_path)
    same_rows(
        READERS[name](tmp_path),
        rows_read[rows_read["step"].between(436, 438)].reset_index(drop=True),
    )


def test_there_is_a_reader_for_each_format(suite: Any) -> None:
    assert set(READERS) == set(suite.formats.FORMATS)


def test_sizes_are_those_of_the_files(suite: Any, runs: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "some").write_bytes(bytes(100))
    (tmp_path / "below" / "others").write_bytes(bytes(23))
    assert suite.formats.size(tmp_path) == 123
    found = suite.files.size_of(run)
    layers = sum(path.stat().st_size for path in (run / "layers").iterdir())
    assert found["values"] == STEPS * LAYERS * 21
    assert found["bytes_per_value"] == pytest.approx(layers / found["values"], abs=1e-4)
    one = suite.files.in_fresh_process(
        "benchmarks.files.formats", "measure", name="SQLite", run=str(run), rounds=1
    )
    assert one["rows"] == 200 * LAYERS
    assert 21 * 6 < one["bytes"] / one["rows"] < 21 * 12  # a float64 per value, or a small integer
    assert suite.formats.ROW_BYTES == 8 + 4 + 21 * 4
    assert len(RECORDED) == 21


def wanted(rows_read: pd.DataFrame, query: str, parameters: Any) -> dict[str, Any]:
    """Return the answer to a query, computed with pandas."""
    rows = rows_read[["layer", "step", "trust_ratio"]].rename(columns={"trust_ratio": "value"})
    if query == "curve":
        rows = rows[rows["layer"] == parameters.layer]
    if query in parameters.widths:
        bucket = (rows["step"] - 1) // parameters.widths[query]
        buckets = rows["value"].groupby([rows["layer"], bucket])
        return buckets.agg(["min", "mean", "max"]).reset_index().to_dict("series")
    steps = [round(math.floor(each)) for each in np.linspace(1, STEPS, 100)]
    keep = {
        "at_steps": rows["step"].isin(steps),
        "one_layer": rows["layer"] == parameters.layer,
        "latest": rows["step"] > STEPS - 256,
    }
    return rows[keep[query]].to_dict("series")


@pytest.mark.parametrize("engine", ["trustlens", "pyarrow", "DuckDB", "Polars"])
def test_each_reader_gives_the_same_answers(
    suite: Any, run: Path, rows_read: pd.DataFrame, engine: str
) -> None:
    one = suite.queries.ENGINES[engine](run)
    one.open()
    parameters = suite.queries.Parameters(STEPS, "layers.17", suite.queries.widths(str(run)))
    for query in suite.queries.QUERIES[1:]:
        answer = one.normalized(getattr(one, query)(parameters))
        right = wanted(rows_read, query, parameters)
        assert set(answer) == set(right), query
        assert answer["layer"].astype(str).tolist() == right["layer"].tolist(), query
        for name in sorted(set(right) - {"layer"}):
            rtol = 1e-6 if name == "mean" else 0
            np.testing.assert_allclose(answer[name], right[name], rtol=rtol, err_msg=query)


def test_there_is_a_test_for_each_reader(suite: Any) -> None:
    assert list(suite.queries.ENGINES) == ["trustlens", "pyarrow", "DuckDB", "Polars"]
    assert set(suite.table.QUERIES) == set(suite.queries.QUERIES)


def test_a_different_answer_is_an_error(suite: Any, monkeypatch: Any, run: Path) -> None:
    def answer(module: str, function: str, engine: str = "", **_: Any) -> dict[str, Any]:
        if engine == "DuckDB":
            raise RuntimeError("it broke")
        sums = {"rows": 2, "value": 3.1 if engine == "Polars" else 3.0}
        return {"first": 1.0, "seconds": [0.5, 0.25], "idle": 0, "peak": 2**20, "answer": sums}

    monkeypatch.setattr(suite.files, "in_fresh_process", answer)
    entries = suite.files.answers({"once": run})["once"]["queries"]["latest"]
    assert entries["trustlens"]["ms"] == 375
    assert (entries["trustlens"].pop("rounds"), entries["pyarrow"].pop("rounds")) == (10, 2)
    assert entries["trustlens"]["peak_mib"] == 1
    assert (entries["pyarrow"]["ms"], entries["pyarrow"]["peak_mib"]) == (375, 1)
    assert entries["DuckDB"] == {"why": "it broke"}
    assert entries["Polars"] == {"why": "a different answer: {'rows': 2, 'value': 3.1}"}


def test_queried_steps_are_spread_over_the_run(suite: Any, run: Path) -> None:
    parameters = suite.queries.Parameters(100_000, "", {})
    assert (parameters.latest, len(parameters.steps), parameters.steps[-1]) == (
        99_745,
        100,
        100_000,
    )
    widths = suite.queries.widths(str(run))
    assert set(widths) == set(suite.queries.BUCKETS)
    assert all(1 <= width <= STEPS for width in widths.values())
    assert widths["curve"] <= widths["heatmap"] <= widths["ridges"]


def test_results_and_errors_of_a_fresh_process_are_returned(suite: Any) -> None:
    found = suite.files.in_fresh_process(
        "benchmarks.files.queries", "checksums", answer={"step": [1, 2], "layer": ["a", "b"]}
    )
    assert found == {"rows": 2, "step": 3.0}
    with pytest.raises(RuntimeError, match=r"^KeyError: 'nothing'$"):
        suite.files.in_fresh_process(
            "benchmarks.files.formats", "measure", name="nothing", run=".", rounds=1
        )
    with pytest.raises(RuntimeError, match="ended with 3"):
        suite.files.in_fresh_process("os", "_exit", status=3)


def test_batches_are_repeated_with_new_step_numbers(suite: Any, run: Path) -> None:
    known = list(suite.formats.batches(suite.formats.slice_of(run, 1, STEPS)))
    batches = list(suite.writing.endless(known, 1030))
    steps = np.concatenate([batch["step"].to_numpy() for batch in batches])
    assert steps.tolist() == np.repeat(np.arange(1, 1031), LAYERS).tolist()
    norms = np.concatenate([batch["grad_norm"].to_numpy() for batch in batches])
    again = STEPS * LAYERS  # from here on the run is repeated
    np.testing.assert_array_equal(norms[again:], norms[: len(norms) - again])


def test_writing_is_measured(suite: Any, run: Path) -> None:
    steps = suite.files.in_fresh_process(
        "benchmarks.files.writing", "steps", run=str(run), count=STEPS
    )
    assert len(steps["plain"]) + len(steps["sealing"]) == -(-STEPS // 64) + 1
    assert len(steps["sealing"]) == 2  # one when it was full, one at the end
    held = suite.files.in_fresh_process(
        "benchmarks.files.writing", "held", run=str(run), early=64, late=400
    )
    assert 0 < held["early"] <= held["early_peak"] <= held["late_peak"]
    assert held["steps"] == [64, 400]
    assert held["longest"] > 0


def test_the_writer_of_the_python_loop_writes_the_recorded_rows(
    suite: Any, run: Path, rows_read: pd.DataFrame, tmp_path: Path
) -> None:
    info = trustlens.open_run(run).info
    rows = suite.formats.slice_of(run, 1, 3)
    records = suite.python_loop.records_of(rows, info)

    def begin(put: Any) -> Any:
        return suite.python_loop.Loop(lambda: None, records, 2, put)

    running = suite.python_loop.with_writer(tmp_path, info, begin)
    for _ in range(4):
        running.step()
    entries = running.close()
    assert entries["dropped"] == 0
    assert entries["waits_percent"] >= 0
    written = pd.read_parquet(tmp_path / "run" / "layers").astype({"layer": str})
    written = written.sort_values(["layer", "step"])
    assert written["step"].nunique() == 4
    for step, of in ((1, 2), (2, 3), (3, 1), (4, 2)):
        found = written[written["step"] == step].reset_index(drop=True)
        there = rows_read[rows_read["step"] == of].reset_index(drop=True)
        assert found["layer"].tolist() == there["layer"].tolist()
        for name in RECORDED:
            np.testing.assert_allclose(found[name], there[name], rtol=2e-6, atol=1e-12)


def test_the_command_writes_its_result_and_prints_tables(
    suite: Any, runs: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    for name in set(suite.formats.FORMATS) - {"trustlens", "CSV"}:
        monkeypatch.delitem(suite.files.FORMATS, name)
    arguments = ["--runs", str(runs), "--steps", str(STEPS), "--rounds", "1", "--to", str(tmp_path)]
    assert suite.files.main([*arguments, "--only", "sizes"]) == 0
    result = json.loads((tmp_path / "files.json").read_text(encoding="utf-8"))
    assert result["sizes"]["formats"]["trustlens"]["bytes_per_value"] == pytest.approx(
        result["sizes"]["lossless"]["bytes_per_value"], rel=0.1
    )
    assert result["versions"]["pyarrow"] == pa.__version__
    printed = capsys.readouterr().out
    assert "| **trustlens**: RunWriter with its overview, flushed every 64 steps |" in printed
    query = "one quantity of all layers, downsampled to 400 ranges of steps"
    assert f"| {query} | ≤ 10 ms | not measured |" in printed


def test_a_part_that_fails_is_reported_and_the_others_are_kept(
    suite: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    def fails(options: Any) -> dict[str, Any]:
        raise RuntimeError("it broke")

    monkeypatch.setitem(suite.files.PARTS, "sizes", fails)
    monkeypatch.setitem(suite.files.PARTS, "writing", lambda options: {"step_us": 12.5})
    arguments = ["--runs", str(tmp_path), "--to", str(tmp_path), "--only", "sizes", "writing"]
    assert suite.files.main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.err == "sizes: it broke\n"
    assert (
        "| appending one step of 300 layers, in batches of 64 steps | ≤ 30 µs | 12.5 µs |"
        in printed.out
    )
    result = json.loads((tmp_path / "files.json").read_text(encoding="utf-8"))
    assert result["sizes"] == {"why": "it broke"}
    assert result["writing"] == {"step_us": 12.5}


def test_tables_show_the_values_of_the_result(suite: Any) -> None:
    ours = {"ms": 2.0, "first_ms": 25.0, "peak_mib": 150.0}
    times = {"trustlens": ours, "DuckDB": {"why": "it broke"}}
    result = {
        "what": "a run",
        "layers": 300,
        "steps": 100_000,
        "sizes": {
            "lossless": {"bytes_per_value": 2.01, "overview_percent": 8.5},
            "formats": {
                "trustlens": {"what": "rows", "steps": 10_000, "bytes_per_value": 2, "mb_s": 200.0},
                "CSV": {"what": "text", "why": "it broke"},
            },
        },
        "queries": {
            "once": {"queries": {"heatmap": times, "one_layer": times}},
            "tenfold": {"queries": {"heatmap": {"trustlens": {"ms": 3.0, "peak_mib": 160.0}}}},
            "TensorBoard": {"scalar_us": 40.0},
        },
        "writing": {"step_us": 12.5},
    }
    lines = suite.table.block(result).splitlines()
    for line in (
        "| a run | goal | measured |",
        "| bytes per value, lossless | ≤ 2.5 | 2.01 B |",
        "| the overview's share of the run | ≤ 10 % | 8.50 % |",
        "| appending one step of 300 layers, in batches of 64 steps | ≤ 30 µs | 12.5 µs |",
        "| bytes per value, rounded to 12 bits | ≤ 1.45 | not measured |",
        "| **trustlens**: rows | 2.00 B | 200 MB/s | 10,000 steps |",
        "| CSV: text | does not run | does not run |  |",
    ):
        assert line in lines
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in lines}
    none = "not measured"
    for what, cells in (
        (
            "one quantity of all layers, downsampled to 400 ranges of steps",
            ["2.00 ms", "25.0 ms", "3.00 ms", none, "1,200 s"],
        ),
        ("one layer, every step", ["2.00 ms", "25.0 ms", none, none, "4,000 ms"]),
    ):
        own, first, ten, other, board = cells
        row = [own, first, ten, other, "does not run", none, board]
        assert rows[what].removesuffix(" |").split(" | ")[2:] == row
    assert "150 MiB |  | 160 MiB" in suite.table.block(result)
