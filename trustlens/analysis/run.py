"""A recorded run: its tables, status, trust ratios and diagnosis."""

from __future__ import annotations

import time
from typing import Any, Final, Literal

import pandas as pd

from trustlens.analysis.diagnose import diagnose
from trustlens.analysis.names import family_of
from trustlens.analysis.selection import StepSelection
from trustlens.analysis.tables import RunTables
from trustlens.analysis.variants import trust_ratio
from trustlens.store.gaps import missing
from trustlens.store.reader import last_written
from trustlens.store.remote.status import is_recorded_here

Status = Literal["recording", "closed", "interrupted"]

SILENCE: Final = 120.0
"""Seconds without a write after which a run that was not closed counts as interrupted. Used only
if it is unknown whether the recording process is alive."""


class Run(RunTables):
    """One recorded run.

    Reading never changes a file. Each call reads what is on disk at that moment, so later calls
    on the same object return the newer steps of a run that is still being recorded.

    Parameters
    ----------
    path : str or path
        The directory that ``trustlens.record`` wrote, or its address.

    Attributes
    ----------
    path : Location
        The directory of the run.
    info : RunInfo
        The content of ``run.json``. If the file changed, the property ``status`` and all methods
        that read layers read the file again.
    """

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}: {len(self.layer_names)} layers, {self.status})"

    @property
    def family(self) -> str:
        """The optimizer's family, such as ``"LAMB"``; ``"unknown"`` if the run has no optimizer."""
        return family_of(self.info.optimizers[0]) if self.info.optimizers else "unknown"

    @property
    def label(self) -> str:
        """A short text for legends: run name, optimizer family and learning rate."""
        groups = self.info.optimizers[0].groups if self.info.optimizers else ()
        rate = groups[0].get("lr") if groups else None
        known = isinstance(rate, (int, float))
        optimizer = f"{self.family}, lr {rate:g}" if known else self.family
        return f"{self.name} · {optimizer}"

    @property
    def status(self) -> Status:
        """One of ``"recording"``, ``"closed"`` and ``"interrupted"``.

        A run is interrupted if its recording ended without being closed.
        """
        self._refresh()
        if self.info.closed is not None:
            return "closed"
        if self.info.recording.repaired is not None:
            return "interrupted"
        recording = is_recorded_here(self.path, self.info)
        if recording is None:
            recording = time.time() - last_written(self.path) <= SILENCE
        return "recording" if recording else "interrupted"

    def missing(self) -> list[str]:
        """Return one sentence for each gap in the run: what is missing, and why.

        Examples are steps for which the disk had no space, and the last steps of a process that
        was killed. The list is empty if the run is complete. Steps that a running recorder has not
        written yet do not count as missing.
        """
        dead = self.status == "interrupted"
        return missing(self.path, self.info, last_step=lambda: self.last_step, dead=dead)

    def trust_ratio(
        self, variant: str = "article", *, steps: StepSelection = None, **options: Any
    ) -> pd.DataFrame:
        """Return the trust ratio that a variant of LAMB would have applied at each step of the run.

        The trust ratio is that of You et al. 2019, Algorithm 2. It is computed from the recorded
        columns of any run of Adam, AdamW or LAMB, without training again. Weights, moving averages,
        ε, learning rate and decay are those of the run. Gradients are those that the run's
        optimizer used, after any clipping by this optimizer. Let w be the weights of a layer, d the
        direction of Adam without weight decay, and λ the weight decay. The norm for any λ is given
        by ‖d+λw‖² = ‖d‖² + 2λ⟨d, w⟩ + λ²‖w‖².

        If the run debiases the moving averages m and v and the variant does not, the result is
        approximate: at optimizer step t, the variant's direction m/(√v+ε) is replaced by
        d·(1−β₁ᵗ)/√(1−β₂ᵗ), which is m/(√v+ε√(1−β₂ᵗ)). The elements of this direction are too
        large, by a relative error below ε/√v and below 1/√(1−β₂ᵗ) − 1. If the variant debiases and
        the run does not, the elements are too small.

        Parameters
        ----------
        variant : str
            A key of ``trustlens.optim.LAMB_VARIANTS``, such as ``"apex"`` or ``"timm"``.
        steps : slice or sequence of int, optional
            Step numbers; default: all.
        **options
            Keyword-only options of ``trustlens.optim.Lamb`` other than ``fused``; they replace
            those of the variant. ``weight_decay`` replaces the decay of the run.

        Returns
        -------
        DataFrame
            Steps × layers, as :meth:`matrix` returns it. If λ or the debiasing differs from the
            run's, the result is also NaN where ‖d+λw‖ is below a hundredth of ‖d‖ + λ‖w‖. There d
            and λw nearly cancel, and the norm computed from stored float32 values is too imprecise.

        Raises
        ------
        UsageError
            If the variant, an option or its value is unknown; or if the ratio cannot be computed
            from the columns of this run (the message says why).

        Examples
        --------
        >>> run.trust_ratio("apex", max_grad_norm=None, weight_decay=0.01).tail()
        """
        return trust_ratio(self, variant, steps, options)

    def diagnose(self) -> pd.DataFrame:
        """Return the suspicious layers, most suspect first; empty for a healthy run.

        Returns
        -------
        DataFrame
            One row per suspicious layer: ``step`` at which the alarm began, ``layer``, ``kind``,
            ``score`` (1 is the alarm threshold) and ``evidence``, a sentence about the values that
            raised the alarm.
        """
        return diagnose(self)
