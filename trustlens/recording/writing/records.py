"""The records that the recorder passes to the writer thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trustlens.recording.measuring.measurement import Measurement
from trustlens.recording.transfer import Parcel


@dataclass(slots=True)  # not frozen, which would make it slower to create
class StepRecord:
    """What was recorded in one step of one optimizer.

    Attributes
    ----------
    step : int
        The number of the step.
    time : int
        Time of the step in microseconds since 1970 (UTC).
    first : bool
        Whether no other optimizer has done a step with this number before.
    measured : sequence of Measurement
        Measurements of the optimizer's layers; empty if they are not recorded at this step.
    skipped : float or Parcel
        0 if the step was done. Another value if the optimizer skipped the step because of infinite
        gradients; then no rows of ``layers`` are written. A Parcel if the value is still being
        copied to the host.
    """

    step: int
    time: int
    first: bool
    measured: Sequence[Measurement[Parcel]] = ()
    skipped: float | Parcel = 0.0


@dataclass(frozen=True, slots=True)
class MetricRecord:
    """The metrics logged by one call of ``Recorder.log``.

    Attributes
    ----------
    step : int
        The last step of the run at the time of the call.
    values : mapping of str to (float or Parcel)
        The metrics by name. A Parcel is a value that is still being copied to the host.
    """

    step: int
    values: Mapping[str, float | Parcel]


Record = StepRecord | MetricRecord
