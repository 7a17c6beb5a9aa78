"""What is kept of the layers while a step is done: copies, only where they are needed."""

# torch offers its operations on lists of tensors under private names only:
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer

from trustlens.recording.directions import Family, Group, reading_waits
from trustlens.recording.layers import Layer

SMALL: Final = 1 << 14
"""Elements up to which a layer's weights are copied always: that costs next to nothing, and holds
what a state cannot tell exactly: which updates were rounded away, weights that were 0."""

_UNDONE: Final = frozenset({torch.float32, torch.float64})
"""Dtypes whose rounding leaves enough of an update to undo it."""


class Kept:
    """Keeps what a step will overwrite.

    The weights of most layers follow from the optimizer's state after the step. They are copied
    where they do not: see :meth:`_can_undo`. The gradient is copied where the optimizer may
    write over it.
    """

    def __init__(self, optimizer: Optimizer, family: Family) -> None:
        self._optimizer = optimizer
        self._family = family
        self._layers: list[Layer] = []
        self._weights: list[Tensor | None] = []
        self._grads: list[Tensor | None] = []
        self._notes: list[Tensor | None] = []
        self._new: set[int] = set()

    def follow(self, layers: Sequence[Layer]) -> None:
        """Keep these from now on."""
        self._layers = list(layers)
        self._weights = [None] * len(layers)
        self._grads = [None] * len(layers)
        self._notes = [None] * len(layers)
        self._new = set(range(len(layers)))

    def take(self, closure: Callable[[], Any] | None, *, everything: bool = False) -> None:
        """Copy what is needed, or everything, before a step that will be given this closure."""
        state = self._optimizer.state
        self._new = {i for i in self._new if _is_new(state.get(self._layers[i].parameter))}
        undone = {id(group): self._undoes(group) for group in self._optimizer.param_groups}
        sources: list[Tensor] = []
        for i, layer in enumerate(self._layers):
            moves = closure is not None or self._moves(layer.parameter)
            if everything or (moves and not (undone[id(layer.group)] and self._can_undo(i, layer))):
                sources.append(layer.parameter)
                if self._weights[i] is None:
                    self._weights[i] = torch.empty_like(layer.parameter)
            else:
                self._weights[i] = None
        if sources:
            torch._foreach_copy_([copy for copy in self._weights if copy is not None], sources)
        if closure is None:
            self.take_grads()
        note = self._family.note
        if note is not None:
            self._notes = [
                _copied(state.get(layer.parameter, {}).get(note)) for layer in self._layers
            ]

    def take_grads(self) -> None:
        """Copy the gradients as they are now, where the step may write over them."""
        spoils = self._family.spoils_grad
        self._grads = [
            _copied(layer.parameter.grad) if spoils(layer.group) else None for layer in self._layers
        ]

    def weights(self, place: int) -> Tensor | None:
        """Return a layer's weights from before the step; None if no copy was needed."""
        return self._weights[place]

    def grad(self, place: int) -> Tensor | None:
        """Return the copy of a layer's gradient; None if there is none."""
        return self._grads[place]

    def noted(self, place: int) -> Tensor | None:
        """Return what the family noted of a layer's state."""
        return self._notes[place]

    def done(self) -> None:
        """Be told that the step was measured."""
        self._grads = [None] * len(self._layers)  # unlike the weights' they are made anew
        # Some optimizers keep no state by which a second step could be told from the first.
        stepped = (self._layers[i].parameter.grad is not None for i in range(len(self._layers)))
        self._new -= {i for i, did in enumerate(stepped) if did and self._weights[i] is not None}

    def _undoes(self, group: Group) -> bool:
        """Tell whether the weights of this group's layers follow from the state after a step."""
        if not self._family.undoes(group):
            return False
        rate = group["lr"]
        if reading_waits(rate):
            return True
        decay = sum(float(group.get(name, 0.0)) for name in ("weight_decay", "lambd"))
        return float(rate) > 0 and float(rate) * decay < 0.5  # else 1 − ηλ is no safe divisor

    def _moves(self, parameter: Tensor) -> bool:
        # Another hook may still set the gradient; what is not known may do without.
        return parameter.grad is not None or parameter.requires_grad or not self._family.name

    def _can_undo(self, place: int, layer: Layer) -> bool:
        return (
            place not in self._new  # weights of 0 that move far could not be told afterwards
            and layer.parameter.numel() > SMALL
            and layer.parameter.dtype in _UNDONE
        )


def _is_new(state: Mapping[str, Any] | None) -> bool:
    """Tell from a layer's state whether the step to come is its first, without waiting."""
    if not state:
        return True
    count = state.get("step")  # Adagrad has its state from the beginning
    return count is not None and not reading_waits(count) and int(count) == 0


def _copied(value: Any) -> Tensor | None:
    return value.detach().clone() if isinstance(value, Tensor) else None
