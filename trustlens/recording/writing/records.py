"""The items that the recorder passes to the writer thread, besides rollbacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trustlens.recording.measuring.measurement import Measurement
from trustlens.recording.transfer import Parcel


@dataclass(slots=True)  # not frozen, as `Direction`
class StepRecord:
    """One optimizer's step.

    Attributes
    ----------
    step : int
        The number of the step.
    time : int
        Microseconds since 1970, in UTC.
    first : bool
        Whether this is the first of the optimizers to do a step of that number.
    measured : sequence of Measurement
        Measurements of its layers.
    skipped : float or Parcel
        0 if the step was done. Otherwise the step changed nothing: it has a row in ``steps``, and
        no rows in other tables.
    """

    step: int
    time: int
    first: bool
    measured: Sequence[Measurement[Parcel]] = ()
    skipped: float | Parcel = 0.0


@dataclass(frozen=True, slots=True)
class MetricRecord:
    """The metrics logged by one call."""

    step: int
    values: Mapping[str, float | Parcel]


Record = StepRecord | MetricRecord
