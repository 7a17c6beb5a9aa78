"""The benchmark of a run's files: that it counts right, and that all give the same answers."""

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
STEPS = 450  # more than a sealed file has, so that there are two
LAYERS = 300


@pytest.fixture(scope="module")
def suite() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPOSITORY)
        from benchmarks.files import beside, formats, queries, recorded_run, run, table, writing

        yield SimpleNamespace(
            files=run,
            beside=beside,
            formats=formats,
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
def told(run: Path) -> pd.DataFrame:
    """The run's rows as pandas reads them, with no help of ours."""
    rows = pd.read_parquet(run / "layers")
    rows["layer"] = rows["layer"].astype(str)
    return rows.sort_values(["layer", "step"], ignore_index=True)


def test_the_run_is_a_training_s(suite: Any, told: pd.DataFrame) -> None:
    assert len(told) == STEPS * LAYERS
    assert not told.isna().any(axis=None)
    one = told[told["layer"] == "layers.17"]
    assert one["grad_norm"].nunique() > 0.99 * STEPS  # noise
    rates = one["learning_rate"].to_numpy()
    assert rates.argmax() == STEPS // 100 - 1  # a hundredth of the run warms up
    assert (np.diff(rates[STEPS // 100 :]) < 0).all()
    late, early = told[told["step"] > STEPS - 100], told[told["step"] <= 100]
    assert late["update_norm"].mean() < 0.5 * early["update_norm"].mean()


def test_the_run_is_recorded_once(suite: Any, run: Path) -> None:
    before = fingerprint(run)
    assert suite.run.recorded(run, STEPS) == run
    assert fingerprint(run) == before
    with pytest.raises(RuntimeError, match="is not the run that is to be measured"):
        suite.run.recorded(run, STEPS + 1)
    with pytest.raises(RuntimeError, match="is not the run that is to be measured"):
        suite.run.recorded(run.parent, STEPS)


def test_a_slice_has_the_rows_in_the_order_in_which_they_came(
    suite: Any, run: Path, told: pd.DataFrame
) -> None:
    rows = suite.formats.slice_of(run, 300, 100)
    assert rows["step"].to_pylist() == [step for step in range(300, 400) for _ in range(LAYERS)]
    assert rows["layer"].to_pylist()[:LAYERS] == [f"layers.{place}" for place in range(LAYERS)]
    there = told[told["step"].between(300, 399)].reset_index(drop=True)
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
def test_each_format_holds_all_numbers(
    suite: Any, run: Path, told: pd.DataFrame, tmp_path: Path, name: str
) -> None:
    form = suite.formats.FORMATS[name]
    form.write(form.prepare(suite.formats.slice_of(run, 436, 3)), tmp_path)
    same_rows(READERS[name](tmp_path), told[told["step"].between(436, 438)].reset_index(drop=True))


def test_there_is_a_reader_for_each_format(suite: Any) -> None:
    assert set(READERS) == set(suite.formats.FORMATS)


def test_bytes_are_those_of_the_files(suite: Any, runs: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "some").write_bytes(bytes(100))
    (tmp_path / "below" / "others").write_bytes(bytes(23))
    assert suite.formats.size(tmp_path) == 123
    found = suite.files.parts_of(run)
    layers = sum(path.stat().st_size for path in (run / "layers").iterdir())
    assert found["values"] == STEPS * LAYERS * 21
    assert found["bytes_per_value"] == pytest.approx(layers / found["values"], abs=1e-4)
    one = suite.files.fresh(
        "benchmarks.files.formats", "measure", name="SQLite", run=str(run), rounds=1
    )
    assert one["rows"] == 200 * LAYERS
    assert 21 * 6 < one["bytes"] / one["rows"] < 21 * 12  # a float64 a value, or a small integer
    assert suite.formats.ROW_BYTES == 8 + 4 + 21 * 4
    assert len(RECORDED) == 21


def wanted(told: pd.DataFrame, query: str, asked: Any) -> dict[str, Any]:
    """An answer as pandas gives it."""
    rows = told[["layer", "step", "trust_ratio"]].rename(columns={"trust_ratio": "value"})
    if query == "curve":
        rows = rows[rows["layer"] == asked.layer]
    if query in asked.widths:
        bucket = (rows["step"] - 1) // asked.widths[query]
        buckets = rows["value"].groupby([rows["layer"], bucket])
        return buckets.agg(["min", "mean", "max"]).reset_index().to_dict("series")
    steps = [round(math.floor(each)) for each in np.linspace(1, STEPS, 100)]
    keep = {
        "at_steps": rows["step"].isin(steps),
        "one_layer": rows["layer"] == asked.layer,
        "latest": rows["step"] > STEPS - 256,
    }
    return rows[keep[query]].to_dict("series")


@pytest.mark.parametrize("engine", ["trustlens", "pyarrow", "DuckDB", "Polars"])
def test_each_reader_gives_the_same_answers(
    suite: Any, run: Path, told: pd.DataFrame, engine: str
) -> None:
    one = suite.queries.ENGINES[engine](run)
    one.open()
    asked = suite.queries.Asked(STEPS, "layers.17", suite.queries.widths(str(run)))
    for query in suite.queries.QUERIES[1:]:
        answer = one.told(getattr(one, query)(asked))
        right = wanted(told, query, asked)
        assert set(answer) == set(right), query
        assert answer["layer"].astype(str).tolist() == right["layer"].tolist(), query
        for name in sorted(set(right) - {"layer"}):
            rtol = 1e-6 if name == "mean" else 0
            np.testing.assert_allclose(answer[name], right[name], rtol=rtol, err_msg=query)


def test_there_is_a_test_for_each_reader(suite: Any) -> None:
    assert list(suite.queries.ENGINES) == ["trustlens", "pyarrow", "DuckDB", "Polars"]
    assert set(suite.table.ASKED) == set(suite.queries.QUERIES)


def test_another_answer_is_no_answer(suite: Any, monkeypatch: Any, run: Path) -> None:
    def answer(module: str, function: str, engine: str = "", **_: Any) -> dict[str, Any]:
        if engine == "DuckDB":
            raise RuntimeError("it broke")
        sums = {"rows": 2, "value": 3.1 if engine == "Polars" else 3.0}
        return {"first": 1.0, "seconds": [0.5, 0.25], "idle": 0, "peak": 2**20, "answer": sums}

    monkeypatch.setattr(suite.files, "fresh", answer)
    entries = suite.files.answers({"once": run})["once"]["queries"]["latest"]
    assert entries["trustlens"]["ms"] == 375
    assert (entries["trustlens"].pop("rounds"), entries["pyarrow"].pop("rounds")) == (10, 2)
    assert entries["trustlens"]["peak_mib"] == 1
    assert (entries["pyarrow"]["ms"], entries["pyarrow"]["peak_mib"]) == (375, 1)
    assert entries["DuckDB"] == {"why": "it broke"}
    assert entries["Polars"] == {"why": "another answer: {'rows': 2, 'value': 3.1}"}


def test_what_is_asked_for_is_spread_over_the_run(suite: Any, run: Path) -> None:
    asked = suite.queries.Asked(100_000, "", {})
    assert (asked.latest, len(asked.steps), asked.steps[-1]) == (99_745, 100, 100_000)
    widths = suite.queries.widths(str(run))
    assert set(widths) == set(suite.queries.BUCKETS)
    assert all(1 <= width <= STEPS for width in widths.values())
    assert widths["curve"] <= widths["heatmap"] <= widths["ridges"]


def test_what_a_fresh_process_says_comes_back(suite: Any) -> None:
    told = suite.files.fresh(
        "benchmarks.files.queries", "summed", told={"step": [1, 2], "layer": ["a", "b"]}
    )
    assert told == {"rows": 2, "step": 3.0}
    with pytest.raises(RuntimeError, match=r"^KeyError: 'nothing'$"):
        suite.files.fresh("benchmarks.files.formats", "measure", name="nothing", run=".", rounds=1)
    with pytest.raises(RuntimeError, match="ended with 3"):
        suite.files.fresh("os", "_exit", status=3)


def test_steps_are_written_over_and_over_and_numbered_on(suite: Any, run: Path) -> None:
    known = list(suite.formats.batches(suite.formats.slice_of(run, 1, STEPS)))
    batches = list(suite.writing.endless(known, 1030))
    steps = np.concatenate([batch["step"].to_numpy() for batch in batches])
    assert steps.tolist() == np.repeat(np.arange(1, 1031), LAYERS).tolist()
    norms = np.concatenate([batch["grad_norm"].to_numpy() for batch in batches])
    again = STEPS * LAYERS  # the run has no more
    np.testing.assert_array_equal(norms[again:], norms[: len(norms) - again])


def test_what_writing_costs_is_told(suite: Any, run: Path) -> None:
    steps = suite.files.fresh("benchmarks.files.writing", "steps", run=str(run), count=STEPS)
    assert len(steps["plain"]) + len(steps["sealing"]) == -(-STEPS // 64) + 1
    assert len(steps["sealing"]) == 2  # in mid-run, and at the end
    held = suite.files.fresh("benchmarks.files.writing", "held", run=str(run), early=64, late=400)
    assert 0 < held["early"] <= held["early_peak"] <= held["late_peak"]
    assert held["steps"] == [64, 400]
    assert held["longest"] > 0


def test_the_writer_beside_the_loop_writes_what_was_recorded(
    suite: Any, run: Path, told: pd.DataFrame, tmp_path: Path
) -> None:
    info = trustlens.open_run(run).info
    rows = suite.formats.slice_of(run, 1, 3)
    records = suite.beside.records_of(rows, info)

    def begin(put: Any) -> Any:
        return suite.beside.Loop(lambda: None, records, 2, put)

    running = suite.beside.beside(tmp_path, info, begin)
    for _ in range(4):
        running.step()
    noted = running.close()
    assert noted["dropped"] == 0
    assert noted["waits_percent"] >= 0
    written = pd.read_parquet(tmp_path / "run" / "layers").astype({"layer": str})
    written = written.sort_values(["layer", "step"])
    assert written["step"].nunique() == 4
    for step, of in ((1, 2), (2, 3), (3, 1), (4, 2)):
        found = written[written["step"] == step].reset_index(drop=True)
        there = told[told["step"] == of].reset_index(drop=True)
        assert found["layer"].tolist() == there["layer"].tolist()
        for name in RECORDED:
            np.testing.assert_allclose(found[name], there[name], rtol=2e-6, atol=1e-12)


def test_the_script_leaves_its_file_and_prints_its_tables(
    suite: Any, runs: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    for name in set(suite.formats.FORMATS) - {"trustlens", "CSV"}:
        monkeypatch.delitem(suite.files.FORMATS, name)
    asked = ["--runs", str(runs), "--steps", str(STEPS), "--rounds", "1", "--to", str(tmp_path)]
    assert suite.files.main([*asked, "--only", "sizes"]) == 0
    result = json.loads((tmp_path / "files.json").read_text(encoding="utf-8"))
    assert result["sizes"]["formats"]["trustlens"]["bytes_per_value"] == pytest.approx(
        result["sizes"]["lossless"]["bytes_per_value"], rel=0.1
    )
    assert result["versions"]["pyarrow"] == pa.__version__
    printed = capsys.readouterr().out
    assert "| **trustlens**: RunWriter with its overview, flushed every 64 steps |" in printed
    assert "| all layers in 400 buckets or fewer | ≤ 10 ms | not measured |" in printed


def test_a_part_that_fails_is_told_and_the_others_stay(
    suite: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    def fails(asked: Any) -> dict[str, Any]:
        raise RuntimeError("it broke")

    monkeypatch.setitem(suite.files.PARTS, "sizes", fails)
    monkeypatch.setitem(suite.files.PARTS, "writing", lambda asked: {"step_us": 12.5})
    asked = ["--runs", str(tmp_path), "--to", str(tmp_path), "--only", "sizes", "writing"]
    assert suite.files.main(asked) == 1
    told = capsys.readouterr()
    assert told.err == "sizes: it broke\n"
    assert (
        "| appending one step of 300 layers, in batches of 64 steps | ≤ 30 µs | 12.5 µs |"
        in told.out
    )
    result = json.loads((tmp_path / "files.json").read_text(encoding="utf-8"))
    assert result["sizes"] == {"why": "it broke"}
    assert result["writing"] == {"step_us": 12.5}


def test_figures_are_found_in_the_result(suite: Any) -> None:
    ours = {"ms": 2.0, "first_ms": 25.0, "peak_mib": 150.0}
    times = {"trustlens": ours, "DuckDB": {"why": "it broke"}}
    result = {
        "what": "a run",
        "layers": 300,
        "steps": 100_000,
        "sizes": {
            "lossless": {"bytes_per_value": 2.01, "overview_percent": 8.5},
            "formats": {
                "trustlens": {"what": "ours", "steps": 10_000, "bytes_per_value": 2, "mb_s": 200.0},
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
        "| **trustlens**: ours | 2.00 B | 200 MB/s | 10,000 steps |",
        "| CSV: text | does not run | does not run |  |",
    ):
        assert line in lines
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in lines}
    none = "not measured"
    for what, cells in (
        ("all layers, at most 400 buckets", ["2.00 ms", "25.0 ms", "3.00 ms", none, "1,200 s"]),
        ("one layer, every step", ["2.00 ms", "25.0 ms", none, none, "4,000 ms"]),
    ):
        own, first, ten, other, board = cells
        row = [own, first, ten, other, "does not run", none, board]
        assert rows[what].removesuffix(" |").split(" | ")[2:] == row
    assert "150 MiB |  | 160 MiB" in suite.table.block(result)
