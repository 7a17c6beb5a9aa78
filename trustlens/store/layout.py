"""Where a run's files lie, what their columns are, and what ``run.json`` says.

::

    run.json                      what the run is (RunInfo)
    <table>/NNNNNN.parquet        sealed: whole, changed by a rewind only (RunWriter.rewind)
    journal/<table>-NNNNNN.arrow  the rows that will become <table>/NNNNNN.parquet
    overview/<k>/<first>-<last>.parquet   the same in buckets of 4^k steps (see overview)
    .lock                         held by the process that writes the run, while it does; on an
                                  object store it says whose session that is (see remote_lock)
    .replaced/NNNNNN/<table>/     sealed files as they were before a rewind took rows out of them

A journal file has the number of the Parquet file that will replace it, so that a reader which
sees both counts the rows once.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import pyarrow as pa

from trustlens.errors import RunError
from trustlens.schema import QUANTITIES, RECORDED, SCHEMA_VERSION, TABLES
from trustlens.store.location import Place, exists, read_bytes
from trustlens.store.remote_location import RemotePlace

RUN_FILE: Final = "run.json"
JOURNAL: Final = "journal"
OVERVIEW: Final = "overview"
LOCK_FILE: Final = ".lock"
REPLACED: Final = ".replaced"

_SIZE: Final = 1 << 53  # elements that no layer has

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

assert tuple(SCHEMAS) == TABLES  # noqa: S101 — the vocabulary names the tables, this file types them


PlaceT = TypeVar("PlaceT", Path, RemotePlace, Place)


def sealed_path(directory: PlaceT, table: str, number: int) -> PlaceT:
    """Return where the sealed file of that number lies."""
    return directory / table / f"{number:06d}.parquet"


def journal_path(directory: PlaceT, table: str, number: int) -> PlaceT:
    """Return where the rows lie that are not sealed yet."""
    return directory / JOURNAL / f"{table}-{number:06d}.arrow"


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """One parameter tensor: its name in the model, its shape, and where its options stand."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    group: int = 0
    optimizer: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class OptimizerInfo:
    """An optimizer's class (dotted), the options of each of its parameter groups, and its kind.

    ``family`` is what the field calls it ("Adam", "LAMB"), empty where it is not known; ``variant``
    names the way in which it writes LAMB or LARS, a key of ``LAMB_VARIANTS`` or ``LARS_VARIANTS``.
    """

    name: str
    groups: tuple[Mapping[str, Any], ...] = ()
    family: str = ""
    variant: str | None = None


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What ``run.json`` says of a run. Times are ISO 8601 in UTC."""

    name: str
    created: str
    closed: str | None = None
    optimizers: tuple[OptimizerInfo, ...] = ()
    layers: tuple[LayerInfo, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    recorder: Mapping[str, Any] = field(default_factory=dict[str, Any])
    schema_version: int = SCHEMA_VERSION

    def closed_at(self, time: str, **recorder: Any) -> RunInfo:
        """Return a copy that says when recording ended, and what the recorder has to add."""
        return replace(self, closed=time, recorder={**self.recorder, **recorder})


def write_info(directory: Path, info: RunInfo) -> None:
    """Write ``run.json``, whole or not at all; RunError if what it is to say is nested too deeply.

    What is read may be: to write takes more of Python's stack.
    """
    path = directory / RUN_FILE
    try:
        content = {"schema_version": info.schema_version, **asdict(info)}
        text = json.dumps(content, indent=2, ensure_ascii=False)
    except RecursionError:
        raise RunError(
            f"'{path}' cannot be written: its config, or what else stands in it, is nested too "
            "deeply; make it flatter"
        ) from None
    with written_whole(path) as temporary:
        # A file's name that is not UTF-8 has lone surrogates: "\udcff" is what JSON calls one.
        temporary.write_bytes(text.encode(errors="backslashreplace"))


def storable(text: str) -> str:
    """Return a text as files and terminals can hold it: a lone surrogate as its escape."""
    return text.encode(errors="backslashreplace").decode()


def unfinished_name(name: str) -> str:
    """Return how a file is called while it is written; readers of tables pass over such names."""
    return f".{name}.tmp"


@contextmanager
def written_whole(path: Path) -> Generator[Path]:
    """Give a place to write a file, so that it appears at its own place whole or not at all."""
    temporary = path.with_name(unfinished_name(path.name))
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # on a full disk the room is needed
            temporary.unlink(missing_ok=True)
        raise


def read_info(directory: Place) -> RunInfo:
    """Read ``run.json``.

    Raises
    ------
    RunError
        There is no such directory, no run in it, the file is not trustlens's, or it was written
        by a newer trustlens.
    """
    path = directory / RUN_FILE
    try:
        raw = json.loads(read_bytes(path).decode(), parse_int=_number)
    except FileNotFoundError:
        raise RunError(_why_no_run(directory)) from None
    except NotADirectoryError:
        raise RunError(f"'{directory}' is a file; give the directory of a run") from None
    except OSError as error:
        raise RunError(
            f"'{path}' cannot be read ({error.strerror}); check its permissions"
        ) from None
    except (ValueError, RecursionError):
        raise RunError(
            f"'{path}' is not a run.json of trustlens: it is not JSON; restore it or record anew"
        ) from None
    if not isinstance(raw, dict) or not isinstance(raw.get("schema_version"), int):
        raise RunError(
            f"'{path}' is not a run.json of trustlens: it has no schema_version; "
            "give a directory that trustlens.record wrote"
        )
    content = cast("dict[str, Any]", raw)
    if content["schema_version"] > SCHEMA_VERSION:
        raise RunError(
            f"'{directory}' was written with schema {content['schema_version']}, and this "
            f"trustlens reads up to {SCHEMA_VERSION}: pip install -U trustlens-optim"
        )
    try:
        return _info_from(content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise RunError(
            f"'{path}' is not a run.json that trustlens understands ({error!r}); "
            "restore it or record anew"
        ) from None


def _number(text: str) -> int | float:
    """Return an integer; a float if it is so large that no size or option of ours can be it."""
    return int(text) if len(text) < 19 else float(text)


def _why_no_run(directory: Place) -> str:
    if not exists(directory):
        return f"there is no directory '{directory}'; check the path"
    return (
        f"'{directory}' holds no run (no {RUN_FILE} in it); "
        "give a directory that trustlens.record wrote"
    )


def _info_from(raw: dict[str, Any]) -> RunInfo:
    info = RunInfo(
        name=storable(str(raw["name"])),
        created=str(raw["created"]),
        closed=None if raw.get("closed") is None else str(raw["closed"]),
        optimizers=tuple(
            OptimizerInfo(
                str(o["name"]),
                tuple(dict(g) for g in o["groups"]),
                str(o.get("family", "")),
                None if o.get("variant") is None else str(o["variant"]),
            )
            for o in raw["optimizers"]
        ),
        layers=tuple(
            LayerInfo(
                storable(str(layer["name"])),
                tuple(int(n) for n in layer["shape"]),
                str(layer["dtype"]),
                int(layer["group"]),
                int(layer["optimizer"]),
            )
            for layer in raw["layers"]
        ),
        config=dict(raw.get("config", {})),
        versions=dict(raw.get("versions", {})),
        recorder=dict(raw.get("recorder", {})),
        schema_version=int(raw["schema_version"]),
    )
    names = {layer.name for layer in info.layers}
    if len(names) < len(info.layers):
        raise ValueError("two layers have the same name")
    if any(min(layer.shape, default=0) < 0 or layer.size >= _SIZE for layer in info.layers):
        raise ValueError("a layer has a shape that no tensor has")
    return info
