"""Convert records to rows of the run's tables, with numpy, on the writer thread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trustlens.kernels.sums import DECLARED, SUMS
from trustlens.recording.measuring.measurement import (
    DEVICE_COLUMNS,
    HOST_COLUMNS,
    KNOWN,
    Measurement,
)
from trustlens.recording.transfer import Parcel, opened_scalar
from trustlens.recording.writing.records import MetricRecord, Record, StepRecord
from trustlens.schema import COUNTS, ELEMENTS, RECORDED
from trustlens.store.arrow import column, columns_of, dictionary
from trustlens.store.layout import SCHEMAS
from trustlens.trust_ratio import RatioRule, article_trust_ratio

_NEEDS: Final[Mapping[str, str]] = {
    "trust_ratio": "direction",
    **{each.quantity: each.needs for each in DECLARED if each.needs is not None},
}
"""Maps a quantity to the entry of `KNOWN` that it needs. Quantities that need none are left out."""

_FLOATS: Final = tuple(name for name in RECORDED if name not in COUNTS)

_OF_WEIGHTS: Final = ("weight_norm", "trust_ratio", "undecayed_dot_weight", "update_dot_weight")
"""Quantities that are computed from the weights before the step."""

_MIN_WEIGHT_TO_UPDATE: Final = 2.0**-6
"""Smallest ‖w‖ / ‖Δw‖ for which ‖w‖ is recorded if w was computed from the state after the step.

Below this ratio, that computation loses digits.
"""


def tables(
    records: Sequence[Record],
    layer_names: Sequence[str],
    held: dict[int, StepRecord] | None = None,
) -> dict[str, pa.Table]:
    """Convert records to the rows of the run's tables.

    Parameters
    ----------
    records : sequence of Record
        The records, in order.
    layer_names : sequence of str
        ``layer_names[i]`` is the name of the layer with index i in the records.
    held : dict of int to StepRecord, optional
        Records of skipped steps, by step number, kept until it is known whether another optimizer
        does the step. This function changes the dict; a later call returns the rows of ``steps``
        for these records. None if the run has one optimizer.

    Returns
    -------
    dict of str to pyarrow.Table
        The rows of each table, by the table's name. Tables without rows are left out.
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
    rows = _one_record_per_step(steps, held)
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


def _layers(measured: Sequence[tuple[int, Measurement[Parcel]]], names: Sequence[str]) -> pa.Table:
    parts = [part for _, part in measured]
    known = _columns(KNOWN, [part.known for part in parts])
    host = _columns(HOST_COLUMNS, [part.host for part in parts])
    sums = _columns(SUMS, [part.sums.open().astype(np.float64, copy=False) for part in parts])
    values = _quantities(sums, np.concatenate([part.sizes for part in parts]))
    if any(part.device is not None for part in parts):
        device = _columns(DEVICE_COLUMNS, [_device_columns(part) for part in parts])
        ratios = device.pop("trust_ratio")
        values["trust_ratio"] = np.where(known["applied"], ratios, values["trust_ratio"])
        for name, given in device.items():
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
    """Concatenate the rows of all parts, and return the columns by name as contiguous arrays."""
    return dict(zip(names, np.ascontiguousarray(np.concatenate(parts).T), strict=True))


def _device_columns(part: Measurement[Parcel]) -> NDArray[np.float64]:
    if part.device is None:
        return np.full((len(part.layers), len(DEVICE_COLUMNS)), np.nan)
    return part.device.open().astype(np.float64)


def _null(
    values: Mapping[str, NDArray[np.float64]], known: Mapping[str, NDArray[np.bool_]]
) -> dict[str, NDArray[np.bool_]]:
    """Return, by name of the quantity, a mask of the rows in which it is null.

    A quantity that is null in no row may be missing in the result.
    """
    absent = {need: ~there for need, there in known.items() if not there.all()}
    null = {name: absent[need] for name, need in _NEEDS.items() if need in absent}
    null |= {name: np.isnan(values[name]) for name in HOST_COLUMNS}
    inaccurate = _is_inaccurate(values, known["undone"])
    if inaccurate.any():
        for name in _OF_WEIGHTS:
            lost = inaccurate & ~known["applied"] if name == "trust_ratio" else inaccurate
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
    with np.errstate(over="ignore"):  # values beyond float32 become infinite
        for i, name in enumerate(names):
            if name in null:
                lacks[i] = null[name]
            stored[i] = np.where(lacks[i], 0, values[name]) if name in COUNTS else values[name]
    return dict(zip(names, columns_of(stored, kind, lacks), strict=True))


def _quantities(
    of: Mapping[str, NDArray[np.float64]], sizes: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    with np.errstate(all="ignore"):  # NaN and infinities stay
        norms = {
            each.quantity: np.sqrt(of[each.name])
            for each in DECLARED
            if each.name.endswith("_squares")
        }
        return {
            **{name: of[name] for name in RECORDED if name in of},
            **norms,
            "trust_ratio": article_trust_ratio(norms["weight_norm"], norms["direction_norm"]),
            "surprise": of["surprise_sum"] / sizes,
            "size": sizes,
        }


def _apply_rules(rules: Sequence[RatioRule | None], values: dict[str, NDArray[np.float64]]) -> None:
    """Replace the trust ratios in ``values`` by the applied ones, in rows that have a rule.

    Such a row is of an optimizer that does not store the trust ratio that it applies. The row's
    rule computes this ratio from the other quantities.
    """
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


def _is_inaccurate(
    values: Mapping[str, NDArray[np.float64]], undone: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return a mask of the rows whose weights before the step are not accurate enough.

    ``undone`` is the mask of the rows whose weights before the step were computed from the state
    after it. Copied weights are always accurate enough.
    """
    with np.errstate(all="ignore"):
        lost = values["weight_norm"] < _MIN_WEIGHT_TO_UPDATE * values["update_norm"]
    return undone & (lost | ~np.isfinite(values["weight_norm"]))


def _histograms(
    measured: Sequence[tuple[int, Measurement[Parcel]]], names: Sequence[str]
) -> pa.Table:
    rows: list[pa.Table] = []
    for step, part in measured:
        if part.counts is None:
            continue
        counts = part.counts.open().reshape(len(part.layers) * len(ELEMENTS), -1)
        layers = np.repeat(part.layers, len(ELEMENTS))
        quantities = np.tile(np.arange(len(ELEMENTS), dtype=np.int32), len(part.layers))
        # A layer without a gradient has no gradient histogram; an empty layer has no histograms.
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


def _one_record_per_step(
    records: Sequence[StepRecord], held: dict[int, StepRecord] | None
) -> list[StepRecord]:
    """Return one record per step, for the table ``steps``.

    Several optimizers may do the same step, which counts as skipped only if all of them skipped it.
    So the record of a skipped step is held back in ``held`` until an optimizer does this step or a
    later step begins.
    """
    rows: list[StepRecord] = []
    for record in records:
        if record.first:
            if held:  # no optimizer will still do the held steps
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
    """Return the rows of ``steps``, one for each record."""
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
