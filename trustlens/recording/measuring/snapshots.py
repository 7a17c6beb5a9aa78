"""Copies of the weights and gradients that a step will overwrite, made only if needed."""

# torch has its operations on lists of tensors only under private names:
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
"""Layers of at most this many elements are always copied. Copying them costs little, and a few
elements are more likely to be all near 0, where computing them from the state is inexact."""

_INVERTIBLE: Final = frozenset({torch.float32, torch.float64})
"""Dtypes with enough digits to compute the weights before a step from those after it."""


@contextmanager
def untraced() -> Generator[None]:
    """Keep autograd from recording the tensor operations of the recorder."""
    # Also leave inference mode: later steps could not write to tensors that are made in it.
    with torch.inference_mode(mode=False), torch.no_grad():
        yield


class WeightSnapshots:
    """Copies of what one optimizer's step will overwrite.

    The weights of most layers before a step can be computed from the optimizer's state after it.
    Weights of the other layers are copied, see :meth:`_can_undo`. Gradients are copied if the
    optimizer may overwrite them.
    """

    def __init__(self, optimizer: Optimizer, family: Family) -> None:
        self._optimizer: Any = optimizer
        self._family = family
        self._layers: list[Layer] = []
        self._weights: list[Tensor | None] = []
        self._grads: list[Tensor | None] = []
        self._state_entries: list[Tensor | None] = []
        self._new: set[int] = set()
        self._everything = False
        self._copy_plans: dict[bool, _CopyPlan] = {}  # by whether everything is copied

    def follow(self, layers: Sequence[Layer]) -> None:
        """Set the layers to copy. The other methods take a layer's place in this list."""
        self._layers = list(layers)
        self._weights = [None] * len(layers)
        self._grads = [None] * len(layers)
        self._state_entries = [None] * len(layers)
        self._new = set(range(len(layers)))
        self._copy_plans = {}

    @property
    def copy_plan(self) -> object:
        """An object that is the same in all steps that copy the same tensors to the same place.

        None as long as the copies may differ from step to step.
        """
        return self._copy_plans.get(self._everything)

    def take(self, closure: Callable[[], Any] | None, *, everything: bool = False) -> None:
        """Make the needed copies, or copy everything, before a step called with this closure."""
        invertible = [self._is_invertible(group) for group in self._optimizer.param_groups]
        self._everything = everything
        if not everything:
            self._copy_plans.pop(True, None)  # as large as the model: free it until the next use
        plan = self._copy_plans.get(everything)
        if plan is not None and plan.is_valid(invertible):
            self._weights = plan.weights
            _copy(plan.sources, plan.copies)
        else:
            with untraced():
                self._choose_and_copy(closure, invertible)

    def _choose_and_copy(self, closure: Callable[[], Any] | None, of_groups: list[bool]) -> None:
        state = self._optimizer.state
        groups = self._optimizer.param_groups
        of_group = {id(group): it for group, it in zip(groups, of_groups, strict=True)}
        self._new = {i for i in self._new if _is_new(state.get(self._layers[i].parameter))}
        sources: list[Tensor] = []
        unchanged: list[Tensor] = []
        self._weights = list(self._weights)
        for i, layer in enumerate(self._layers):
            parameter = layer.parameter
            invertible = of_group[id(layer.group)] and self._can_undo(i, layer)
            if (invertible or self._family.provides_weights_before) and not self._everything:
                self._weights[i] = None
            elif self._everything or closure is not None or self._may_change(parameter):
                sources.append(parameter)
                if self._weights[i] is None:
                    self._weights[i] = torch.empty_like(parameter)
            else:
                unchanged.append(parameter)
                self._weights[i] = None
        copies = [copy for copy in self._weights if copy is not None]
        _copy(sources, copies)
        entry = self._family.state_entry_before
        overwrites = any(self._family.overwrites_grad(group) for group in groups)
        self._copy_plans.pop(self._everything, None)
        if not (self._new or entry or overwrites):
            plan = _CopyPlan(of_groups, unchanged, self._weights, sources, copies)
            self._copy_plans[self._everything] = plan
        if closure is None:
            self.take_grads()
        if entry is not None:
            self._state_entries = [
                _copy_of(state.get(layer.parameter, {}).get(entry)) for layer in self._layers
            ]

    def take_grads(self) -> None:
        """Copy the current gradients that the step may overwrite."""
        overwrites = self._family.overwrites_grad
        with untraced():
            self._grads = [
                _copy_of(layer.parameter.grad) if overwrites(layer.group) else None
                for layer in self._layers
            ]

    def weights(self, place: int) -> Tensor | None:
        """Return a layer's weights before the step; None if no copy was needed."""
        weights = self._weights[place]
        if weights is None and self._family.provides_weights_before:
            return self._optimizer.before.get(self._layers[place].parameter)
        return weights

    def grad(self, place: int) -> Tensor | None:
        """Return the copy of a layer's gradient, or None."""
        return self._grads[place]

    def state_entry(self, place: int) -> Tensor | None:
        """Return the value before the step of the family's ``state_entry_before``, or None."""
        return self._state_entries[place]

    def done(self) -> None:
        """Forget what was needed only to measure the last step."""
        if self.copy_plan is not None:
            return
        self._grads = [None] * len(self._layers)  # not reused, unlike copies of weights
        # The state of some optimizers does not show whether a step is the first.
        stepped = (self._layers[i].parameter.grad is not None for i in range(len(self._layers)))
        self._new -= {i for i, did in enumerate(stepped) if did and self._weights[i] is not None}

    def _is_invertible(self, group: Group) -> bool:
        """Return whether the weights before a step can be computed from the state after it."""
        if not self._family.invertible(group):
            return False
        rate = float_or_tensor(group["lr"])
        if isinstance(rate, Tensor):
            return True
        decay = sum(float(group.get(name, 0.0)) for name in ("weight_decay", "lambd"))
        return rate > 0 and rate * decay < 0.5  # else dividing by 1 − ηλ is not safe

    def _may_change(self, parameter: Tensor) -> bool:
        # Another hook may still set the gradient; an unknown optimizer may step without one.
        return parameter.grad is not None or parameter.requires_grad or not self._family.name

    def _can_undo(self, place: int, layer: Layer) -> bool:
        return (
            place not in self._new  # weights that start at 0 and move far cannot be recovered
            and layer.parameter.numel() > SMALL
            and layer.parameter.dtype in _INVERTIBLE
        )


@dataclass(frozen=True, slots=True, eq=False)
class _CopyPlan:
    """The copies to make before each step, as long as :meth:`is_valid`.

    Attributes
    ----------
    invertible : list of bool
        For each group, whether its weights can be computed from the state.
    unchanged : list of Tensor
        Parameters that no step changes. The plan is valid only as long as this is so.
    weights : list of Tensor or None
        The copy of each layer.
    sources, copies : list of Tensor
        The tensors to copy, and their copies.
    """

    invertible: list[bool]
    unchanged: list[Tensor]
    weights: list[Tensor | None]
    sources: list[Tensor]
    copies: list[Tensor]

    def is_valid(self, invertible: list[bool]) -> bool:
        """Return whether the next step needs the same copies.

        ``invertible`` is, for each group, whether its weights before that step can be computed
        from the state after it.
        """
        return invertible == self.invertible and not any(
            p.requires_grad or p.grad is not None for p in self.unchanged
        )


def _is_new(state: Mapping[str, Any] | None) -> bool:
    """Return whether a layer's next step is its first, without synchronizing."""
    if not state:
        return True
    count = state.get("step")  # Adagrad creates its state before its first step
    return count is not None and not is_on_accelerator(count) and int(count) == 0


def _copy(sources: list[Tensor], copies: list[Tensor]) -> None:
    if sources:
        with untraced():
            torch._foreach_copy_(copies, sources)


def _copy_of(value: Any) -> Tensor | None:
    return value.detach().clone() if isinstance(value, Tensor) else None
