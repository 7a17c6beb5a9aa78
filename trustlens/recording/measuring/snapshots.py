"""What is kept of the layers while a step is done: copies, only where they are needed."""

# torch offers its operations on lists of tensors under private names only:
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer

from trustlens.recording.measuring.layers import Layer
from trustlens.recording.optimizers import Family, Group, float_or_tensor, is_on_accelerator

SMALL: Final = 1 << 8
"""Elements up to which a layer's weights are copied always: that costs next to nothing, and so few
easily come near 0 all together, where a state does not tell them exactly."""

_UNDONE: Final = frozenset({torch.float32, torch.float64})
"""Dtypes whose rounding leaves enough of an update to undo it."""


@contextmanager
def untraced() -> Generator[None]:
    """Have nothing that is done with tensors traced, for a training to be the same with it."""
    # Not in inference mode: what is kept for later steps may be outside of it then.
    with torch.inference_mode(mode=False), torch.no_grad():
        yield


class Kept:
    """Keeps what a step will overwrite.

    The weights of most layers follow from the optimizer's state after the step. They are copied
    where they do not: see :meth:`_can_undo`. The gradient is copied where the optimizer may
    write over it.
    """

    def __init__(self, optimizer: Optimizer, family: Family) -> None:
        self._optimizer: Any = optimizer
        self._family = family
        self._layers: list[Layer] = []
        self._weights: list[Tensor | None] = []
        self._grads: list[Tensor | None] = []
        self._notes: list[Tensor | None] = []
        self._new: set[int] = set()
        self._everything = False
        self._routines: dict[bool, _Routine] = {}  # by whether everything is copied

    def follow(self, layers: Sequence[Layer]) -> None:
        """Keep these from now on."""
        self._layers = list(layers)
        self._weights = [None] * len(layers)
        self._grads = [None] * len(layers)
        self._notes = [None] * len(layers)
        self._new = set(range(len(layers)))
        self._routines = {}

    @property
    def settled(self) -> object:
        """What stays the same object while each step keeps the same as the last one; or None."""
        return self._routines.get(self._everything)

    def take(self, closure: Callable[[], Any] | None, *, everything: bool = False) -> None:
        """Copy what is needed, or everything, before a step that will be given this closure."""
        undone = [self._undoes(group) for group in self._optimizer.param_groups]
        self._everything = everything
        if not everything:
            self._routines.pop(True, None)  # as large as the model: gone until it is needed again
        routine = self._routines.get(everything)
        if routine is not None and routine.holds(undone):
            self._weights = routine.weights
            _copy(routine.sources, routine.copies)
        else:
            with untraced():
                self._take_anew(closure, undone)

    def _take_anew(self, closure: Callable[[], Any] | None, of_groups: list[bool]) -> None:
        state = self._optimizer.state
        groups = self._optimizer.param_groups
        of_group = {id(group): it for group, it in zip(groups, of_groups, strict=True)}
        self._new = {i for i in self._new if _is_new(state.get(self._layers[i].parameter))}
        sources: list[Tensor] = []
        still: list[Tensor] = []
        self._weights = list(self._weights)
        for i, layer in enumerate(self._layers):
            parameter = layer.parameter
            undone = of_group[id(layer.group)] and self._can_undo(i, layer)
            if (undone or self._family.provides_weights_before) and not self._everything:
                self._weights[i] = None
            elif self._everything or closure is not None or self._moves(parameter):
                sources.append(parameter)
                if self._weights[i] is None:
                    self._weights[i] = torch.empty_like(parameter)
            else:
                still.append(parameter)
                self._weights[i] = None
        copies = [copy for copy in self._weights if copy is not None]
        _copy(sources, copies)
        note = self._family.state_entry_before
        spoils = any(self._family.overwrites_grad(group) for group in groups)
        self._routines.pop(self._everything, None)
        if not (self._new or note or spoils):
            routine = _Routine(of_groups, still, self._weights, sources, copies)
            self._routines[self._everything] = routine
        if closure is None:
            self.take_grads()
        if note is not None:
            self._notes = [
                _copied(state.get(layer.parameter, {}).get(note)) for layer in self._layers
            ]

    def take_grads(self) -> None:
        """Copy the gradients as they are now, where the step may write over them."""
        spoils = self._family.overwrites_grad
        with untraced():
            self._grads = [
                _copied(layer.parameter.grad) if spoils(layer.group) else None
                for layer in self._layers
            ]

    def weights(self, place: int) -> Tensor | None:
        """Return a layer's weights from before the step; None if no copy was needed."""
        weights = self._weights[place]
        if weights is None and self._family.provides_weights_before:
            return self._optimizer.before.get(self._layers[place].parameter)
        return weights

    def grad(self, place: int) -> Tensor | None:
        """Return the copy of a layer's gradient; None if there is none."""
        return self._grads[place]

    def noted(self, place: int) -> Tensor | None:
        """Return what the family noted of a layer's state."""
        return self._notes[place]

    def done(self) -> None:
        """Be told that the step was measured."""
        if self.settled is not None:
            return
        self._grads = [None] * len(self._layers)  # unlike the weights' they are made anew
        # Some optimizers keep no state by which a second step could be told from the first.
        stepped = (self._layers[i].parameter.grad is not None for i in range(len(self._layers)))
        self._new -= {i for i, did in enumerate(stepped) if did and self._weights[i] is not None}

    def _undoes(self, group: Group) -> bool:
        """Tell whether the weights of this group's layers follow from the state after a step."""
        if not self._family.invertible(group):
            return False
        rate = float_or_tensor(group["lr"])
        if isinstance(rate, Tensor):
            return True
        decay = sum(float(group.get(name, 0.0)) for name in ("weight_decay", "lambd"))
        return rate > 0 and rate * decay < 0.5  # else 1 − ηλ is no safe divisor

    def _moves(self, parameter: Tensor) -> bool:
        # Another hook may still set the gradient; what is not known may do without.
        return parameter.grad is not None or parameter.requires_grad or not self._family.name

    def _can_undo(self, place: int, layer: Layer) -> bool:
        return (
            place not in self._new  # weights of 0 that move far could not be told afterwards
            and layer.parameter.numel() > SMALL
            and layer.parameter.dtype in _UNDONE
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Routine:
    """What is copied before each step as long as nothing suggests otherwise.

    Attributes
    ----------
    undone : list of bool
        Of which groups the weights follow from the state.
    still : list of Tensor
        The parameters that did not move: should one do so, it is another matter.
    weights : list of Tensor or None
        The copies by layer.
    sources, copies : list of Tensor
        What is copied, and to where.
    """

    undone: list[bool]
    still: list[Tensor]
    weights: list[Tensor | None]
    sources: list[Tensor]
    copies: list[Tensor]

    def holds(self, undone: list[bool]) -> bool:
        """Tell whether a step with these groups undone needs the same copies."""
        return undone == self.undone and not any(
            p.requires_grad or p.grad is not None for p in self.still
        )


def _is_new(state: Mapping[str, Any] | None) -> bool:
    """Tell from a layer's state whether the step to come is its first, without waiting."""
    if not state:
        return True
    count = state.get("step")  # Adagrad has its state from the beginning
    return count is not None and not is_on_accelerator(count) and int(count) == 0


def _copy(sources: list[Tensor], copies: list[Tensor]) -> None:
    if sources:
        with untraced():
            torch._foreach_copy_(copies, sources)


def _copied(value: Any) -> Tensor | None:
    return value.detach().clone() if isinstance(value, Tensor) else None
