"""From the sums of some steps to rows of the run's tables: on the writer thread, in numpy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from trustlens.recording.optimizers import Direction, is_on_accelerator
from trustlens.recording.statistics import SUMS, LayerStep
from trustlens.recording.transfer import Parcel, opened_scalar
from trustlens.schema import COUNTS, ELEMENTS, RECORDED
from trustlens.store.arrow import column, columns_of, dictionary
from trustlens.store.layout import SCHEMAS
from trustlens.trust_ratio import RatioRule, article_trust_ratio

HOST_COLUMNS: Final = ("debias1", "debias2", "learning_rate", "weight_decay")
"""What the hook knows without asking the device."""

DEVICE_COLUMNS: Final = ("trust_ratio", "learning_rate", "debias1", "debias2")
"""What may lie on the device instead; it comes behind the sums."""

KNOWN: Final = (
    "gradient",
    "direction",  # d + λw
    "undecayed",  # d itself
    "intended",  # d by its formula and w from a copy: what was rounded away shows
    "momentum",
    "variance",
    "applied",  # the optimizer's own trust ratio
    "undone",  # w follows from what was there after the step
)
"""What a layer may lack in a step: the quantities made of it are then null."""

_NEEDS: Final[Mapping[str, str]] = {
    "trust_ratio": "direction",
    "direction_norm": "direction",
    "grad_norm": "gradient",
    "undecayed_norm": "undecayed",
    "undecayed_dot_weight": "undecayed",
    "grad_dot_momentum": "momentum",
    "momentum_norm": "momentum",
    "variance_sum": "variance",
    "surprise": "variance",
    "grad_max": "gradient",
    "zero_grad": "gradient",
    "swallowed": "intended",
}

_FLOATS: Final = tuple(name for name in RECORDED if name not in COUNTS)

_OF_WEIGHTS: Final = ("weight_norm", "trust_ratio", "undecayed_dot_weight", "update_dot_weight")
"""What is made of the weights before the step."""

_NAN: Final = float("nan")

_UNSURE: Final = 2.0**-6
"""‖w‖ / ‖Δw‖ below which w, undone, would have fewer digits than are recorded."""


def known_of(step: LayerStep) -> tuple[bool, ...]:
    """Return what a layer had in a step, in the order of `KNOWN`."""
    d = step.direction
    there = d is not None
    return (
        step.grad is not None,
        there,
        there and d.decay is not None,
        there and not d.measured and step.before is not None,
        there and d.momentum is not None,
        there and d.variance is not None,
        there and d.trust_ratio is not None,
        step.before is None and there,
    )


def host_of(direction: Direction | None, rate: Any = None) -> tuple[float, ...]:
    """Return a layer's `HOST_COLUMNS`; NaN for what there is not, or what lies on the device."""
    if direction is None:
        return (_NAN, _NAN, at_hand(rate), _NAN)
    factors = (direction.debias1, direction.debias2)
    decay = _NAN if direction.decay is None else direction.decay
    return (*(at_hand(factor) for factor in factors), at_hand(rate), decay)


def at_hand(value: float | Tensor | None) -> float:
    """Return a number as a float; NaN for None, and for what lies on an accelerator."""
    return _NAN if value is None or is_on_accelerator(value) else float(value)


@dataclass(slots=True)  # not frozen, as `Direction`
class Measured:
    """Some layers of one step that lie on one device, n of them.

    Attributes
    ----------
    layers : int32 (n,)
        Indices into the run's layers.
    sizes : float64 (n,)
        Elements of each.
    known : bool (n, len(KNOWN))
        What each layer had.
    host : float64 (n, len(HOST_COLUMNS))
        NaN stands for null.
    sums : float (n, len(SUMS))
        The sums.
    beside : float (n, len(DEVICE_COLUMNS)), optional
        The trust ratio that the optimizer applied, and the learning rate and debias factors where
        they lie on the device; NaN where they do not, or there is none.
    rules : (n,), optional
        How the trust ratio that the optimizer applied follows from what was measured, or None;
        empty if there is no such rule.
    counts : int64 (n, len(ELEMENTS), buckets), optional
        Element histograms.
    """

    layers: NDArray[np.int32]
    sizes: NDArray[np.float64]
    known: NDArray[np.bool_]
    host: NDArray[np.float64]
    sums: Parcel
    beside: Parcel | None = None
    rules: Sequence[RatioRule | None] = ()
    counts: Parcel | None = None

    @property
    def nbytes(self) -> int:
        """What it holds on the host until it is written."""
        held = self.layers.nbytes + self.sizes.nbytes + self.known.nbytes + self.host.nbytes
        for parcel in (self.sums, self.beside, self.counts):
            held += 0 if parcel is None else parcel.nbytes
        return held


@dataclass(slots=True)  # not frozen, as `Direction`
class StepRecord:
    """One optimizer's step; ``first`` if no other optimizer did a step of that number before.

    ``time`` is in microseconds since 1970, in UTC.

    ``skipped`` is not 0 if it changed nothing: then it has no rows but its own.
    """

    step: int
    time: int
    first: bool
    measured: Sequence[Measured] = ()
    skipped: float | Parcel = 0.0


@dataclass(frozen=True, slots=True)
class MetricRecord:
    """What was logged in one call."""

    step: int
    values: Mapping[str, float | Parcel]


Record = StepRecord | MetricRecord


def tables(
    records: Sequence[Record],
    layer_names: Sequence[str],
    held: dict[int, StepRecord] | None = None,
) -> dict[str, pa.Table]:
    """Return the rows that the records make, by table; a table without rows is left out.

    Of several optimizers, ``held`` keeps steps that the first one skipped, until it is known
    whether another did them.
    """
    steps = [
        record
        if isinstance(record.skipped, float)
        else replace(record, skipped=opened_scalar(record.skipped))
        for record in records
        if isinstance(record, StepRecord)
    ]
    measured = [
        (record.step, part) for record in steps if not record.skipped for part in record.measured
    ]
    rows = _one_a_step(steps, held)
    logged = [record for record in records if isinstance(record, MetricRecord) and record.values]
    made: dict[str, pa.Table] = {}
    if measured:
        made["layers"] = _layers(measured, layer_names)
    if any(part.counts is not None for _, part in measured):
        made["histograms"] = _histograms(measured, layer_names)
    if rows:
        made["steps"] = steps_table(rows)
    if logged:
        made["metrics"] = _metrics(logged)
    return {name: table for name, table in made.items() if table.num_rows}


def _layers(measured: Sequence[tuple[int, Measured]], names: Sequence[str]) -> pa.Table:
    parts = [part for _, part in measured]
    known = _columns(KNOWN, [part.known for part in parts])
    host = _columns(HOST_COLUMNS, [part.host for part in parts])
    sums = _columns(SUMS, [part.sums.open().astype(np.float64, copy=False) for part in parts])
    values = _quantities(sums, np.concatenate([part.sizes for part in parts]))
    if any(part.beside is not None for part in parts):
        beside = _columns(DEVICE_COLUMNS, [_beside(part) for part in parts])
        ratios = beside.pop("trust_ratio")
        values["trust_ratio"] = np.where(known["applied"], ratios, values["trust_ratio"])
        for name, given in beside.items():
            host[name] = np.where(np.isnan(host[name]), given, host[name])
    values |= host
    if any(part.rules for part in parts):
        rules = [part.rules or (None,) * len(part.layers) for part in parts]
        _apply_rules([rule for of_part in rules for rule in of_part], values)
    null = _null(values, known)
    of_steps = np.repeat([step for step, _ in measured], [len(part.layers) for part in parts])
    made = {
        "step": column(of_steps.astype(np.int64), pa.int64()),
        "layer": dictionary(np.concatenate([part.layers for part in parts]), names),
        **_stored(_FLOATS, values, null, np.float32, pa.float32()),
        **_stored(COUNTS, values, null, np.int64, pa.int64()),
    }
    schema = SCHEMAS["layers"]
    return pa.Table.from_arrays([made[name] for name in schema.names], schema=schema)


def _columns(names: Sequence[str], parts: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the columns of all parts by name, each in one piece."""
    return dict(zip(names, np.ascontiguousarray(np.concatenate(parts).T), strict=True))


def _beside(part: Measured) -> NDArray[np.float64]:
    if part.beside is None:
        return np.full((len(part.layers), len(DEVICE_COLUMNS)), np.nan)
    return part.beside.open().astype(np.float64)


def _null(
    values: Mapping[str, NDArray[np.float64]], known: Mapping[str, NDArray[np.bool_]]
) -> dict[str, NDArray[np.bool_]]:
    """Return where quantities are null, by name; those that nowhere are may be left out."""
    absent = {need: ~there for need, there in known.items() if not there.all()}
    null = {name: absent[need] for name, need in _NEEDS.items() if need in absent}
    null |= {name: np.isnan(values[name]) for name in HOST_COLUMNS}
    unsure = _unsure(values, known["undone"])
    if unsure.any():
        for name in _OF_WEIGHTS:
            lost = unsure & ~known["applied"] if name == "trust_ratio" else unsure
            null[name] = lost | null[name] if name in null else lost
    empty = values["size"] == 0
    if empty.any():
        lost = empty & np.isnan(values["surprise"])
        null["surprise"] = lost | null["surprise"] if "surprise" in null else lost
    return null


def _stored(
    names: Sequence[str],
    values: Mapping[str, NDArray[np.float64]],
    null: Mapping[str, NDArray[np.bool_]],
    dtype: type[np.float32 | np.int64],
    kind: pa.DataType,
) -> dict[str, pa.Array]:
    shape = len(names), len(values["size"])
    stored, lacks = np.empty(shape, dtype), np.zeros(shape, bool)
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite there
        for i, name in enumerate(names):
            if name in null:
                lacks[i] = null[name]
            stored[i] = np.where(lacks[i], 0, values[name]) if name in COUNTS else values[name]
    return dict(zip(names, columns_of(stored, kind, lacks), strict=True))


def _quantities(
    of: Mapping[str, NDArray[np.float64]], sizes: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    with np.errstate(all="ignore"):  # NaN and infinities go through as they are
        norms = {
            name.replace("_squares", "_norm"): np.sqrt(of[name])
            for name in SUMS
            if name.endswith("_squares")
        }
        return {
            **{name: of[name] for name in RECORDED if name in of},
            **norms,
            "trust_ratio": article_trust_ratio(norms["weight_norm"], norms["direction_norm"]),
            "surprise": of["surprise_sum"] / sizes,
            "size": sizes,
        }


def _apply_rules(rules: Sequence[RatioRule | None], values: dict[str, NDArray[np.float64]]) -> None:
    """Put in the trust ratios of optimizers that apply one and do not keep it."""
    rows_of: dict[RatioRule, list[int]] = {}
    for row, rule in enumerate(rules):
        if rule is not None:
            rows_of.setdefault(rule, []).append(row)
    for rule, rows in rows_of.items():
        values["trust_ratio"][rows] = rule(
            **{
                name: values[name][rows]
                for name in (
                    "weight_norm",
                    "undecayed_norm",
                    "direction_norm",
                    "learning_rate",
                    "weight_decay",
                )
            }
        )


def _unsure(
    values: Mapping[str, NDArray[np.float64]], undone: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Tell where the weights before a step cannot be told from what was there after it."""
    with np.errstate(all="ignore"):
        lost = values["weight_norm"] < _UNSURE * values["update_norm"]
    return undone & (lost | ~np.isfinite(values["weight_norm"]))


def _histograms(measured: Sequence[tuple[int, Measured]], names: Sequence[str]) -> pa.Table:
    rows: list[pa.Table] = []
    for step, part in measured:
        if part.counts is None:
            continue
        counts = part.counts.open().reshape(len(part.layers) * len(ELEMENTS), -1)
        layers = np.repeat(part.layers, len(ELEMENTS))
        quantities = np.tile(np.arange(len(ELEMENTS), dtype=np.int32), len(part.layers))
        # A layer without gradient has no histogram of one; an empty layer has none of anything.
        there = counts.any(axis=1)
        counts, layers, quantities = counts[there], layers[there], quantities[there]
        row, bucket = np.nonzero(counts)
        ends = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(counts)))])
        columns = [
            column(np.full(len(counts), step, np.int64), pa.int64()),
            dictionary(layers, names),
            dictionary(quantities, ELEMENTS),
            pa.MapArray.from_arrays(
                column(ends.astype(np.int32), pa.int32()),
                column(bucket.astype(np.int16), pa.int16()),
                column(counts[row, bucket], pa.int64()),
            ),
        ]
        rows.append(pa.Table.from_arrays(columns, schema=SCHEMAS["histograms"]))
    return pa.concat_tables(rows)


def _one_a_step(
    records: Sequence[StepRecord], held: dict[int, StepRecord] | None
) -> list[StepRecord]:
    """Return a record for each step: it counts as skipped if no optimizer did it."""
    rows: list[StepRecord] = []
    for record in records:
        if record.first:
            if held:  # no other optimizer is at these any more
                rows += held.values()
                held.clear()
            if record.skipped and held is not None:
                held[record.step] = record
            else:
                rows.append(record)
        elif held and record.step in held and not record.skipped:
            rows.append(replace(held.pop(record.step), skipped=0.0))
    return rows


def steps_table(records: Iterable[StepRecord]) -> pa.Table:
    """Return the rows of ``steps`` that these make, one each."""
    records = list(records)
    schema = SCHEMAS["steps"]
    columns = [
        np.array([record.step for record in records], np.int64),
        np.array([record.time for record in records], np.int64),
        np.array([bool(record.skipped) for record in records], bool),
    ]
    return pa.Table.from_arrays(list(map(column, columns, schema.types)), schema=schema)


def _metrics(records: Sequence[MetricRecord]) -> pa.Table:
    names = sorted({name for record in records for name in record.values})
    places = {name: place for place, name in enumerate(names)}
    entries = [
        (record.step, places[name], opened_scalar(value))
        for record in records
        for name, value in record.values.items()
    ]
    steps, indices, values = zip(*entries, strict=True)
    columns = [
        column(np.array(steps, np.int64), pa.int64()),
        dictionary(np.array(indices, np.int32), names),
        column(np.array(values, np.float64), pa.float64()),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMAS["metrics"])
