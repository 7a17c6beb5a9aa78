"""A recorded run: its tables, and what is computed from them."""

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
"""Seconds without a write after which a run that was never closed counts as interrupted, where it
is not known whether the process that records it is alive."""


class Run(RunTables):
    """One recorded run.

    Reading never changes a file. Each call reads what is on disk at that moment, so that the
    same object follows a run which is still being recorded.

    Parameters
    ----------
    path : str or path
        The directory that ``trustlens.record`` wrote, or its address.

    Attributes
    ----------
    path : Location
        The directory of the run.
    info : RunInfo
        The content of ``run.json`` when it was last read, by ``status`` or as layers were read.
    """

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}: {len(self.layer_names)} layers, {self.status})"

    @property
    def family(self) -> str:
        """The usual name of the optimizer: ``"Adam"``, ``"LAMB"``, …; ``"unknown"`` if none."""
        return family_of(self.info.optimizers[0]) if self.info.optimizers else "unknown"

    @property
    def label(self) -> str:
        """A short text for legends: the name, and the optimizer with its learning rate."""
        groups = self.info.optimizers[0].groups if self.info.optimizers else ()
        rate = groups[0].get("lr") if groups else None
        known = isinstance(rate, (int, float))
        optimizer = f"{self.family}, lr {rate:g}" if known else self.family
        return f"{self.name} · {optimizer}"

    @property
    def status(self) -> Status:
        """Whether it is being recorded, was closed, or ended without being closed."""
        self._refresh()
        if self.info.closed is not None:
            return "closed"
        if self.info.recording.repaired is not None:
            return "interrupted"
        held = is_recorded_here(self.path, self.info)
        if held is None:
            held = time.time() - last_written(self.path) <= SILENCE
        return "recording" if held else "interrupted"

    def missing(self) -> list[str]:
        """Return what is missing from the run and why, one sentence each; empty if nothing is.

        For example steps for which the disk had no space, or the last steps of a process that was
        killed. The end of a run that is being recorded does not count as missing.
        """
        dead = self.status == "interrupted"
        return missing(self.path, self.info, last_step=lambda: self.last_step, dead=dead)

    def trust_ratio(
        self, variant: str = "article", *, steps: StepSelection = None, **options: Any
    ) -> pd.DataFrame:
        """Return the trust ratio that a LAMB (You et al. 2019, Algorithm 2) would have applied.

        Works for any run of Adam, AdamW or a LAMB, with the weights, moving averages, ε, rate and
        decay of that run: nothing is trained again. The gradients are those that the optimizer
        used, after any clipping of its own. For any λ, ‖d+λw‖² = ‖d‖² + 2λ⟨d, w⟩ + λ²‖w‖² follows
        from the stored columns. Where the run debiases and the variant does not, m/(√v+ε) is
        approximated by d·(1−β₁ᵗ)/√(1−β₂ᵗ), whose ε is smaller by the factor √(1−β₂ᵗ): its elements
        are too large, by a relative error below ε/√v and below 1/√(1−β₂ᵗ) − 1. In the opposite
        case they are too small.

        Parameters
        ----------
        variant : str
            A key of ``trustlens.optim.LAMB_VARIANTS``, such as ``"apex"`` or ``"timm"``.
        steps : slice or sequence of int, optional
            Step numbers; all if not given.
        **options
            Options of ``trustlens.optim.Lamb`` from ``debias`` on, which replace the variant's;
            and ``weight_decay``, which replaces the run's.

        Returns
        -------
        DataFrame
            As :meth:`matrix`. Also NaN where d and λw cancel to less than a hundredth, for which
            the precision of the stored float32 is too low.

        Raises
        ------
        UsageError
            There is no such variant, option or value; or the ratio cannot be computed from what
            this run stored, and the message says why.

        Examples
        --------
        >>> run.trust_ratio("apex", max_grad_norm=None, weight_decay=0.01).tail()
        """
        return trust_ratio(self, variant, steps, options)

    def diagnose(self) -> pd.DataFrame:
        """Return findings, most suspect first; empty for a healthy run.

        Returns
        -------
        DataFrame
            ``step`` of the onset, ``layer``, ``kind``, ``score``, ``evidence`` in words.
        """
        return diagnose(self)
