"""The contents of ``run.json``: their types, and reading and writing the file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self, TypeAlias, cast

from trustlens.errors import RunError
from trustlens.schema import SCHEMA_VERSION, TABLES
from trustlens.store.address import Address, locate
from trustlens.store.atomic_write import atomic_write
from trustlens.store.layout import RUN_FILE
from trustlens.store.location import Location

_MAX_ELEMENTS: Final = 1 << 53  # more than any tensor has

StepRanges: TypeAlias = tuple[tuple[int, int], ...]
"""Pairs of a first and a last step, both included."""

_TORN: Final = {table: f"torn_{table}" for table in TABLES}
"""For each table, the key of ``run.json`` that holds the table's item of ``RecordingInfo.torn``."""


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """What ``run.json`` says about one layer, which is one parameter tensor.

    Attributes
    ----------
    name : str
        The layer's name, unique within the run.
    shape : tuple of int
        The shape of the tensor.
    dtype : str
        The dtype of the tensor.
    group : int
        Index of the tensor's parameter group in its optimizer.
    optimizer : int
        Index of that optimizer in ``RunInfo.optimizers``.
    """

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
    """What ``run.json`` says about one optimizer.

    Attributes
    ----------
    name : str
        Dotted name of the optimizer's class.
    groups : tuple of mapping
        The options of each parameter group.
    family : str
        The usual name of the algorithm, such as "Adam" or "LAMB"; empty if it is not known.
    variant : str or None
        Which implementation of LAMB or LARS this is: a key of ``LAMB_VARIANTS`` or
        ``LARS_VARIANTS``. None for other families, or if it is not known.
    """

    name: str
    groups: tuple[Mapping[str, Any], ...] = ()
    family: str = ""
    variant: str | None = None


@dataclass(frozen=True, slots=True)
class RecordingInfo:
    """How a run was recorded, and which of its steps are missing.

    This is the value of the key ``recorder`` in ``run.json``.

    Attributes
    ----------
    every, histograms_every : int
        Recording periods, in steps, of the table ``layers`` and of the table ``histograms``.
        ``histograms_every`` is 0 if histograms are not recorded.
    precision : int or None
        Number of mantissa bits to which floats of the table ``layers`` were rounded. It is 23 if
        they were not rounded, and None if it is not known, as for runs of older versions.
    statistics : str
        The names of the backends that computed the statistics, separated by commas.
    session : str or None
        Identifier of the recording that wrote the run last; None for a run that was not recorded to
        an object store. If the ``run.json`` in a staging folder and the one on the store
        have different identifiers, the staging folder has an older state of the run.
    optimizer_steps_before : tuple of int
        For each optimizer, the number of steps that it had done before the first step of the run.
    gaps : step ranges
        Steps that lack rows because the disk was full.
    passed_over : step ranges
        Steps that were done while nothing was recorded, before a run was resumed.
    torn : mapping of str to step ranges
        For each table, steps that lack rows because the recording process died.
    dropped : int
        Number of steps and logged values that were dropped because writing was too slow.
    stopped : str or None
        The error that stopped the recording; None if none did.
    repaired : str or None
        Time at which the run was repaired after an interruption, ISO 8601 in UTC; None if it was
        not repaired.
    other : mapping
        Keys of ``run.json`` that this version of trustlens does not know, with their values. They
        are written again whenever ``run.json`` is rewritten.
    """

    every: int = 1
    histograms_every: int = 0
    precision: int | None = None
    statistics: str = ""
    session: str | None = None
    optimizer_steps_before: tuple[int, ...] = ()
    gaps: StepRanges = ()
    passed_over: StepRanges = ()
    torn: Mapping[str, StepRanges] = field(default_factory=dict[str, StepRanges])
    dropped: int = 0
    stopped: str | None = None
    repaired: str | None = None
    other: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Parse the value of the key ``recorder``.

        Where an integer or a list is expected, a value of another type is treated as absent. Where
        a text is expected, it is converted to a text.
        """
        precision = _integer(raw.get("precision"), -1, at_least=1)
        torn = {table: _ranges(raw.get(key)) for table, key in _TORN.items()}
        return cls(
            every=_integer(raw.get("every"), 1, at_least=1),
            histograms_every=_integer(raw.get("histograms_every"), 0),
            precision=None if precision < 0 else precision,
            statistics=_text(raw.get("statistics")) or "",
            session=_text(raw.get("session")),
            optimizer_steps_before=_counts(raw.get("optimizer_steps_before")),
            gaps=_ranges(raw.get("gaps")),
            passed_over=_ranges(raw.get("passed_over")),
            torn={table: ranges for table, ranges in torn.items() if ranges},
            dropped=_integer(raw.get("dropped"), 0),
            stopped=_text(raw.get("stopped")),
            repaired=_text(raw.get("repaired")),
            other={key: value for key, value in raw.items() if key not in _KNOWN},
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object. Optional keys whose value is empty, 0 or None are left out."""
        optional = {
            "precision": self.precision,
            "statistics": self.statistics,
            "session": self.session,
            "optimizer_steps_before": list(self.optimizer_steps_before),
            "gaps": _as_lists(self.gaps),
            "passed_over": _as_lists(self.passed_over),
            **{_TORN[table]: _as_lists(ranges) for table, ranges in self.torn.items()},
            "dropped": self.dropped,
            "stopped": self.stopped,
            "repaired": self.repaired,
        }
        return {
            "every": self.every,
            "histograms_every": self.histograms_every,
            **{key: value for key, value in optional.items() if value},
            **self.other,
        }

    @property
    def known_missing(self) -> StepRanges:
        """All step ranges that are known to lack rows, for any reason."""
        torn = (each for ranges in self.torn.values() for each in ranges)
        return (*self.gaps, *self.passed_over, *torn)

    def with_missing(
        self,
        *,
        gaps: Iterable[tuple[int, int]] = (),
        passed_over: Iterable[tuple[int, int]] = (),
        torn: Mapping[str, Iterable[tuple[int, int]]] | None = None,
    ) -> RecordingInfo:
        """Return a copy with more missing steps. Adjacent and overlapping ranges are joined."""
        more = {
            table: _joined((*self.torn.get(table, ()), *ranges))
            for table, ranges in (torn or {}).items()
        }
        return replace(
            self,
            gaps=_joined((*self.gaps, *gaps)),
            passed_over=_joined((*self.passed_over, *passed_over)),
            torn={**self.torn, **more},
        )

    def missing_up_to(self, last: int) -> RecordingInfo:
        """Return a copy without the missing steps after ``last``."""
        torn = {table: _up_to(ranges, last) for table, ranges in self.torn.items()}
        return replace(
            self,
            gaps=_up_to(self.gaps, last),
            passed_over=_up_to(self.passed_over, last),
            torn={table: ranges for table, ranges in torn.items() if ranges},
        )

    def with_missing_of(self, other: RecordingInfo) -> RecordingInfo:
        """Return a copy in which the missing steps are those of ``other``."""
        return replace(self, gaps=other.gaps, passed_over=other.passed_over, torn=other.torn)

    def resumed_by(self, new: RecordingInfo) -> RecordingInfo:
        """Return a copy for this run when it is resumed by a recording with the options of ``new``.

        The recording periods, the precision and the statistics are those of ``new``. So is the
        session, unless ``new`` has none. ``stopped`` and ``repaired`` become None. The other
        attributes are unchanged.
        """
        return replace(
            self,
            every=new.every,
            histograms_every=new.histograms_every,
            precision=new.precision,
            statistics=new.statistics,
            session=new.session or self.session,
            stopped=None,
            repaired=None,
        )


_KNOWN: Final = frozenset(RecordingInfo.__dataclass_fields__).union(_TORN.values()) - {
    "torn",
    "other",
}


@dataclass(frozen=True, slots=True)
class RunInfo:
    """The contents of ``run.json``.

    Attributes
    ----------
    name : str
        The name of the run.
    created, closed : str
        When the run was created and closed, ISO 8601 in UTC; ``closed`` is None for a run that was
        not closed.
    optimizers : tuple of OptimizerInfo
        The optimizers.
    layers : tuple of LayerInfo
        The layers, which are parameter tensors.
    config : mapping
        The run's configuration, as the user gave it.
    versions : mapping of str to str
        Versions of the software with which the run was recorded.
    recording : RecordingInfo
        How the run was recorded, and which steps are missing.
    schema_version : int
        Version of the file format.
    """

    name: str
    created: str
    closed: str | None = None
    optimizers: tuple[OptimizerInfo, ...] = ()
    layers: tuple[LayerInfo, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    recording: RecordingInfo = RecordingInfo()
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Parse the JSON object that was read from a ``run.json``.

        Raises
        ------
        KeyError, TypeError, ValueError, AttributeError, OverflowError
            If a required key is missing or has a value of the wrong kind.
        """
        info = cls(
            name=storable(str(raw["name"])),
            created=str(raw["created"]),
            closed=_text(raw.get("closed")),
            optimizers=tuple(map(_optimizer, raw["optimizers"])),
            layers=tuple(map(_layer, raw["layers"])),
            config=dict(raw.get("config", {})),
            versions=dict(raw.get("versions", {})),
            recording=RecordingInfo.from_json(dict(raw.get("recorder", {}))),
            schema_version=int(raw["schema_version"]),
        )
        if len({layer.name for layer in info.layers}) < len(info.layers):
            raise ValueError("two layers have the same name")
        if any(min(at.shape, default=0) < 0 or at.size >= _MAX_ELEMENTS for at in info.layers):
            raise ValueError("a layer has a shape that no tensor has")
        return info

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that is written to ``run.json``."""
        own = {"schema_version": self.schema_version, **asdict(self)}
        del own["recording"]
        return {**own, "recorder": self.recording.to_json()}

    def change_recording(self, **changes: Any) -> RunInfo:
        """Return a copy in which ``changes`` replace attributes of ``recording``."""
        return replace(self, recording=replace(self.recording, **changes))

    def closed_at(self, time: str, **changes: Any) -> RunInfo:
        """Return a copy with ``closed`` set to ``time``; for ``changes`` see `change_recording`."""
        return replace(self.change_recording(**changes), closed=time)


def write_info(directory: Path, info: RunInfo) -> None:
    """Write ``run.json`` atomically.

    Raises
    ------
    RunError
        If the config, or another value, is nested too deeply for Python's JSON writer. Even a value
        that was read from a ``run.json`` may be too deep: writing needs more of Python's stack.
    """
    path = directory / RUN_FILE
    try:
        text = json.dumps(info.to_json(), indent=2, ensure_ascii=False)
    except RecursionError:
        raise RunError(
            f"'{path}' cannot be written: its config, or another value, is nested too "
            "deeply; make it flatter"
        ) from None
    with atomic_write(path) as temporary:
        # In Python, a file name that is not UTF-8 contains lone surrogates. UTF-8 cannot encode
        # them: they are written as JSON escapes, such as "\udcff".
        temporary.write_bytes(text.encode(errors="backslashreplace"))


def read_info(address: Address) -> RunInfo:
    """Read ``run.json``.

    Raises
    ------
    RunError
        If the directory does not exist or holds no run; or if the file cannot be read, was not
        written by trustlens, or was written by a newer version of trustlens.
    """
    directory = locate(address)
    path = directory / RUN_FILE
    try:
        raw = json.loads(path.read_bytes().decode(), parse_int=_int_or_float)
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
            f"'{path}' is not a run.json of trustlens: it is not JSON; restore it or record again"
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
        return RunInfo.from_json(content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise RunError(
            f"'{path}' is not a run.json that trustlens understands ({error!r}); "
            "restore it or record again"
        ) from None


def storable(text: str) -> str:
    """Return a text in which lone surrogates are escaped, so that UTF-8 can encode it."""
    return text.encode(errors="backslashreplace").decode()


def _int_or_float(text: str) -> int | float:
    """Parse an integer. From 19 characters on, return a float: no valid value is so large."""
    return int(text) if len(text) < 19 else float(text)


def _why_no_run(directory: Location) -> str:
    if not directory.exists():
        return f"there is no directory '{directory}'; check the path"
    return (
        f"'{directory}' holds no run (no {RUN_FILE} in it); "
        "give a directory that trustlens.record wrote"
    )


def _optimizer(raw: Mapping[str, Any]) -> OptimizerInfo:
    return OptimizerInfo(
        name=str(raw["name"]),
        groups=tuple(dict(group) for group in raw["groups"]),
        family=str(raw.get("family", "")),
        variant=_text(raw.get("variant")),
    )


def _layer(raw: Mapping[str, Any]) -> LayerInfo:
    return LayerInfo(
        name=storable(str(raw["name"])),
        shape=tuple(int(n) for n in raw["shape"]),
        dtype=str(raw["dtype"]),
        group=int(raw["group"]),
        optimizer=int(raw["optimizer"]),
    )


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(value: Any, default: int, *, at_least: int = 0) -> int:
    return value if _is_integer(value) and value >= at_least else default


def _counts(value: Any) -> tuple[int, ...]:
    """Return the items of a list, with 0 in place of each that is not an integer."""
    given: list[Any] = value if isinstance(value, list) else []
    return tuple(each if _is_integer(each) else 0 for each in given)


def _ranges(value: Any) -> StepRanges:
    """Return the items of a list that are pairs of integers; other items are left out."""
    given: list[Any] = value if isinstance(value, list) else []
    return tuple(
        (pair[0], pair[1])
        for pair in given
        if isinstance(pair, list) and len(pair) == 2 and all(map(_is_integer, pair))
    )


def _as_lists(ranges: StepRanges) -> list[list[int]]:
    return [list(pair) for pair in ranges]


def _joined(ranges: Sequence[tuple[int, int]]) -> StepRanges:
    """Return the ranges sorted; ranges that overlap or are adjacent are merged."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return tuple(joined)


def _up_to(ranges: StepRanges, last: int) -> StepRanges:
    return tuple((first, min(end, last)) for first, end in ranges if first <= last)
