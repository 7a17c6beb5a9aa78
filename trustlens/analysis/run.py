"""A recorded run: its tables, and what is computed from them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trustlens.analysis.diagnose import diagnose
from trustlens.analysis.names import family_of
from trustlens.analysis.tables import RunTables, StepSelection
from trustlens.analysis.variants import trust_ratio
from trustlens.store.downsampled import Coarse
from trustlens.store.gaps import missing
from trustlens.store.reader import RunFiles, fingerprint, last_written
from trustlens.store.remote.staging import is_written

Status = Literal["recording", "closed", "interrupted"]

SILENCE: Final = 120.0
"""Seconds without a write after which a run that was never closed counts as interrupted, where it
cannot be told whether the process that records it is there."""


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
    path : Place
        The directory of the run.
    info : RunInfo
        The content of ``run.json`` when it was last read, by ``status`` or as layers were read.
    """

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}: {len(self.layer_names)} layers, {self.status})"

    @property
    def family(self) -> str:
        """What the field calls the optimizer: ``"Adam"``, ``"LAMB"``, …; ``"unknown"`` if none."""
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
        held = is_written(self.path, self.info)
        if held is None:
            held = time.time() - last_written(self.path) <= SILENCE
        return "recording" if held else "interrupted"

    def missing(self) -> list[str]:
        """Return what the run lacks and why, a sentence each; empty if it lacks nothing.

        Such as steps for which there was no room on the disk, or those that a process did last
        which was killed. A run that is being recorded lacks nothing yet of its end.
        """
        dead = self.status == "interrupted"
        return missing(self.path, self.info, last_step=lambda: self.last_step, dead=dead)

    @property
    def version(self) -> str:
        """A text that changes whenever there is something new to read."""
        return fingerprint(self.path)

    @property
    def files(self) -> RunFiles:
        """The files of the run."""
        return self._files

    @property
    def is_long(self) -> bool:
        """Whether its samples are read from its overview."""
        return self._is_long

    def recorded_steps(self, steps: StepSelection = None) -> NDArray[np.int64]:
        """Return the steps that have rows in ``layers``, ascending, int64 of shape (steps,)."""
        return self._recorded_steps(steps)

    def overview(self, name: str, points: int = 400, **options: Any) -> Coarse:
        """Return :meth:`downsample` of one quantity."""
        return self.downsample(name, points, **options)

    def overviews(
        self, names: Sequence[str], points: int = 400, **options: Any
    ) -> dict[str, Coarse]:
        """Return :meth:`downsample` of several quantities."""
        return self.downsample(list(names), points, **options)

    def trust_ratio(
        self, variant: str = "article", *, steps: StepSelection = None, **options: Any
    ) -> pd.DataFrame:
        """Return the trust ratio that a LAMB (You et al. 2019, Algorithm 2) would have applied.

        Of any run of the Adam family (Adam, AdamW, any LAMB), with its own weights, averages, ε,
        rate and decay: nothing is trained anew. Gradients count as the optimizer used them, after
        any clipping of its own. For any λ, ‖d+λw‖² = ‖d‖² + 2λ⟨d, w⟩ + λ²‖w‖² is had from what is
        stored. Where the run debiases and the variant does not, m/(√v+ε) is told from
        d·(1−β₁ᵗ)/√(1−β₂ᵗ), whose ε is smaller by √(1−β₂ᵗ): its elements are too large, by shares
        below ε/√v and below 1/√(1−β₂ᵗ) − 1; the other way round they are too small.

        Parameters
        ----------
        variant : str
            A key of ``trustlens.optim.LAMB_VARIANTS``, such as ``"apex"`` or ``"timm"``.
        steps : slice or sequence of int, optional
            Step numbers; all if not given.
        **options
            Options of ``trustlens.optim.Lamb`` from ``debias`` on, in place of the variant's;
            and ``weight_decay``, in place of the run's.

        Returns
        -------
        DataFrame
            As :meth:`matrix`. NaN also where d and λw cancel to less than a hundredth, of which
            the stored float32 keep too little.

        Raises
        ------
        UsageError
            There is no such variant, option or value; or it cannot be had from what this run
            stored, and the message says why.

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
