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
        Whether no other optimizer did a step of that number before.
    measured : sequence of Measurement
        What was measured of its layers.
    skipped : float or Parcel
        0 unless the step changed nothing: then it has a row in ``steps`` and no others.
    """

    step: int
    time: int
    first: bool
    measured: Sequence[Measurement[Parcel]] = ()
    skipped: float | Parcel = 0.0


@dataclass(frozen=True, slots=True)
class MetricRecord:
    """The metrics that one call logged."""

    step: int
    values: Mapping[str, float | Parcel]


Record = StepRecord | MetricRecord
