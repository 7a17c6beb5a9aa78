"""The paths of a run's files, and the Arrow schemas of a run's tables.

::

    run.json                      description of the run (RunInfo)
    <table>/NNNNNN.parquet        sealed segment; only a rollback changes it (RunWriter.rollback)
    journal/<table>-NNNNNN.arrow  the rows that will become <table>/NNNNNN.parquet
    overview/<k>/<first>-<last>.parquet   rows of segments <first> to <last> of the table "layers",
                                  downsampled to buckets of 4^k steps (see overview.format)
    .lock                         locked by the process that writes the run; on an object store, it
                                  contains the id of the recording (remote.lease)
    .replaced/NNNNNN/<table>/     copies of sealed segments from before a rollback

New rows are appended to a journal. A journal with enough rows is sealed: its rows are sorted and
written to a Parquet file, the sealed segment, and the journal is removed. The segment has the same
number as the journal. A reader that sees both ignores the journal, so that it reads each row once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeVar

import pyarrow as pa

from trustlens.schema import QUANTITIES, RECORDED, TABLES
from trustlens.store.location import Location

RUN_FILE: Final = "run.json"
JOURNAL: Final = "journal"
OVERVIEW: Final = "overview"
LOCK_FILE: Final = ".lock"
REPLACED: Final = ".replaced"

_NAME: Final = pa.dictionary(pa.int32(), pa.string())
_ARROW: Final = {"float": pa.float32(), "int64": pa.int64()}

SCHEMAS: Final[Mapping[str, pa.Schema]] = {
    "layers": pa.schema(
        [
            pa.field("step", pa.int64(), nullable=False),
            pa.field("layer", _NAME, nullable=False),
            *(pa.field(name, _ARROW[QUANTITIES[name].dtype or "float"]) for name in RECORDED),
        ]
    ),
    "steps": pa.schema(
        [
            pa.field("step", pa.int64(), nullable=False),
            pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),
            pa.field("skipped", pa.bool_(), nullable=False),
        ]
    ),
    "metrics": pa.schema(
        [
            pa.field("step", pa.int64(), nullable=False),
            pa.field("name", _NAME, nullable=False),
            pa.field("value", pa.float64()),
        ]
    ),
    "histograms": pa.schema(
        [
            pa.field("step", pa.int64(), nullable=False),
            pa.field("layer", _NAME, nullable=False),
            pa.field("quantity", _NAME, nullable=False),
            pa.field("counts", pa.map_(pa.int16(), pa.int64())),
        ]
    ),
}
"""The Arrow schema of each table."""

assert tuple(SCHEMAS) == TABLES  # noqa: S101 — the names of the tables


Folder = TypeVar("Folder", Path, Location)


def sealed_path(directory: Folder, table: str, number: int) -> Folder:
    """Return the path of a sealed segment."""
    return directory / table / f"{number:06d}.parquet"


def journal_path(directory: Folder, table: str, number: int) -> Folder:
    """Return the path of a journal, whose rows become the sealed segment of the same number."""
    return directory / JOURNAL / f"{table}-{number:06d}.arrow"
