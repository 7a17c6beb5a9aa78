"""Many runs as one data set, and the code of docs/remote.md for other query engines."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.bag as db
import dask.dataframe as dd
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.fs as arrow_fs
import pytest
from dask.distributed import Client, LocalCluster

import trustlens
from tests.support.runs import make_run
from trustlens.errors import UsageError
from trustlens.store.address import locate

PAGE = Path(__file__).parents[2] / "docs" / "remote.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three runs; a layer of one of them explodes."""
    for number, name in enumerate(["adam", "lamb", "deep/sgd"]):
        values = {}
        if name == "lamb":
            update = np.full((200, 4), 0.01)
            update[150:, 2] = 1e6
            values = {"update_norm": update}
        make_run(tmp_path / "sweep" / name, layers=4, steps=200, seed=number, values=values)
    (tmp_path / "sweep" / "notes.txt").write_text("mine")
    return tmp_path / "sweep"


def test_the_data_set_has_all_rows_and_the_name_of_their_run(sweep: Path) -> None:
    data = trustlens.dataset(f"{sweep}/*")
    frame = data.to_table().to_pandas().astype({"layer": str})
    assert sorted(frame["run"].unique()) == ["adam", "deep/sgd", "lamb"]
    for name, rows in frame.groupby("run"):
        run = trustlens.open_run(sweep / str(name))
        found = rows.sort_values(["step", "layer"])["weight_norm"].to_numpy()
        expected = run.layers(["weight_norm"]).astype({"layer": str})
        expected = expected.sort_values(["step", "layer"])["weight_norm"].to_numpy()
        np.testing.assert_array_equal(found, expected)
    assert trustlens.dataset(sweep, "steps").count_rows() == 600


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("", ["adam", "deep/sgd", "lamb"]),
        ("adam", ["adam"]),
        ("*a*m*", ["adam", "lamb"]),
        ("[al]*", ["adam", "lamb"]),
        ("deep/*", ["sgd"]),
    ],
)
def test_patterns(sweep: Path, pattern: str, names: list[str]) -> None:
    table = trustlens.dataset(f"{sweep}/{pattern}", "steps").to_table(["run"])
    assert sorted(set(table["run"].to_pylist())) == names


def test_an_unknown_pattern_or_table_is_rejected(sweep: Path) -> None:
    with pytest.raises(UsageError, match="no run matches"):
        trustlens.dataset(f"{sweep}/nothing*")
    with pytest.raises(UsageError, match="'rows' is not a table"):
        trustlens.dataset(sweep, "rows")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Client]:
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None
        ) as started,
        Client(started) as client,
    ):
        yield client


def run_block(text: str, names: dict[str, Any]) -> Any:
    """Run the page's code block that contains the text; return the value of its last line."""
    (block,) = [block for block in BLOCKS if text in block]
    *lines, last = ast.parse(block).body
    assert isinstance(last, ast.Expr)
    exec(compile(ast.Module(lines, []), str(PAGE), "exec"), names)  # noqa: S102
    return eval(compile(ast.Expression(last.value), str(PAGE), "eval"), names)  # noqa: S307


def test_the_code_of_the_page(sweep: Path, cluster: Client) -> None:
    data = trustlens.dataset(f"{sweep}/*")
    names = {"data": data, "trustlens": trustlens, "duckdb": duckdb, "pl": pl, "dd": dd, "db": db}
    whole = data.to_table().to_pandas().astype({"layer": str})
    largest = whole.groupby(["run", "layer"])["grad_norm"].max()

    rows = run_block("duckdb.sql", names).df().set_index(["run", "layer"])["worst"].sort_index()
    ratio = (whole["update_norm"] / whole["weight_norm"]).groupby([whole["run"], whole["layer"]])
    np.testing.assert_allclose(rows.to_numpy(), ratio.max().to_numpy(), rtol=1e-6)

    rows = run_block("scan_pyarrow_dataset", names).sort("run", "layer")
    np.testing.assert_array_equal(rows["grad_norm"].to_numpy(), largest.to_numpy())

    rows = run_block("from_map", names)
    rows.index = rows.index.set_levels(rows.index.levels[1].astype(str), level=1)
    np.testing.assert_array_equal(rows.sort_index().to_numpy(), largest.to_numpy())

    names["addresses"] = [str(sweep / name) for name in ("adam", "lamb", "deep/sgd")]
    found = pd.concat(run_block("from_sequence", names))
    assert found.iloc[0][["layer", "kind"]].tolist() == ["block1.weight", "exploding"]
    assert found.iloc[0]["run"] == str(sweep / "lamb")
    assert cluster.status == "running"


def test_runs_on_an_object_store(sweep: Path) -> None:
    memory = locate("memory://fleet")
    for path in sweep.rglob("*"):
        if path.is_file():
            name = path.relative_to(sweep).as_posix()
            memory.filesystem.create_dir(f"fleet/{name}".rpartition("/")[0])
            with memory.filesystem.open_output_stream(f"fleet/{name}") as out:
                out.write(path.read_bytes())
    assert isinstance(memory.filesystem, arrow_fs.PyFileSystem)
    data = trustlens.dataset("memory://fleet/*")
    assert sorted(set(data.to_table(["run"])["run"].to_pylist())) == ["adam", "deep/sgd", "lamb"]
    assert data.count_rows() == 2400
