"""Read the sums that an optimizer of this package computed during its fused step."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trustlens.kernels.device import upload


def fused_parameters(optimizer: Any) -> set[int]:
    """Return the ids of the parameters whose sums a `Lamb` or `Lars` computed in its last step."""
    return {id(parameter) for parameters, _ in optimizer.measured for parameter in parameters}


class FusedSums:
    """Reads the sums of some parameters, all on one device, after each step of a `Lamb` or `Lars`.

    These optimizers keep the sums of their last fused step in the attribute ``measured``.
    """

    def __init__(self, optimizer: Any, parameters: Sequence[Tensor]) -> None:
        self._optimizer = optimizer
        self._parameters = list(parameters)
        self._device = parameters[0].device
        self._last: list[Tensor] = []  # the parameters that `_rows` is for
        self._rows = torch.empty(0, dtype=torch.int64)

    def read(self) -> Tensor | None:
        """Return the sums of the last step, float64 of shape (parameters, len(SUMS)).

        Return None if the last step did not compute the sums of all these parameters.
        """
        measured = [each for each in self._optimizer.measured if each[1].device == self._device]
        stepped = [parameter for parameters, _ in measured for parameter in parameters]
        if len(stepped) != len(self._last) or not all(map(operator.is_, stepped, self._last)):
            row_of = {id(parameter): row for row, parameter in enumerate(stepped)}
            rows = [row_of.get(id(parameter), -1) for parameter in self._parameters]
            if -1 in rows:
                return None
            self._rows = upload(np.array(rows, np.int64), self._device)
            self._last = stepped
        return torch.cat([sums for _, sums in measured])[self._rows]
