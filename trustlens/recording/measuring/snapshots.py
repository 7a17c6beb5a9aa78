"""Copy the weights and gradients that a step will overwrite, if they are needed afterwards."""

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
"""The weights of layers of at most this many elements are always copied. This costs little, and the
weights of a small layer are more likely to be all near 0. Computing such weights from the state
after the step would be inexact."""

_INVERTIBLE: Final = frozenset({torch.float32, torch.float64})
"""Dtypes with enough digits to compute the weights before a step from those after it."""


@contextmanager
def untraced() -> Generator[None]:
    """Keep autograd from recording the tensor operations of the recorder."""
    # Also leave inference mode: later steps could not write to tensors that were created in it.
    with torch.inference_mode(mode=False), torch.no_grad():
        yield


class WeightSnapshots:
    """Copies, made before each step of one optimizer, of tensors that the step overwrites.

    For most layers, the weights before a step can be computed from the weights and the optimizer's
    state after it. The weights of the other layers are copied, see :meth:`_can_undo`. Gradients are
    copied if the optimizer may overwrite them.
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
        self._copy_plans: dict[bool, _CopyPlan] = {}  # key: whether all weights are copied

    def follow(self, layers: Sequence[Layer]) -> None:
        """Set the layers to copy. The other methods take a layer's index in this list."""
        self._layers = list(layers)
        self._weights = [None] * len(layers)
        self._grads = [None] * len(layers)
        self._state_entries = [None] * len(layers)
        self._new = set(range(len(layers)))
        self._copy_plans = {}

    @property
    def copy_plan(self) -> object:
        """Identifies which weights are copied, and to which tensors.

        Two steps for which this is the same object copied the same weights to the same tensors.
        The value is None as long as the copies may differ from step to step.
        """
        return self._copy_plans.get(self._everything)

    def take(self, closure: Callable[[], Any] | None, *, everything: bool = False) -> None:
        """Make the copies that are needed. Call this before each step that is to be measured.

        Parameters
        ----------
        closure : callable, optional
            The closure that the step will be called with.
        everything : bool
            Whether to copy the weights of all layers, even if they can be computed afterwards.
        """
        invertible = [self._is_invertible(group) for group in self._optimizer.param_groups]
        self._everything = everything
        if not everything:
            self._copy_plans.pop(True, None)  # as large as the model: free its memory
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
        """Copy the present gradients of the layers whose gradients the step may overwrite."""
        overwrites = self._family.overwrites_grad
        with untraced():
            self._grads = [
                _copy_of(layer.parameter.grad) if overwrites(layer.group) else None
                for layer in self._layers
            ]

    def weights(self, place: int) -> Tensor | None:
        """Return a layer's weights before the step; None if they were not copied."""
        weights = self._weights[place]
        if weights is None and self._family.provides_weights_before:
            return self._optimizer.before.get(self._layers[place].parameter)
        return weights

    def grad(self, place: int) -> Tensor | None:
        """Return the copy of a layer's gradient, or None if it was not copied."""
        return self._grads[place]

    def state_entry(self, place: int) -> Tensor | None:
        """Return a copy, made before the step, of a layer's entry in the optimizer's state.

        The entry is the one that ``Family.state_entry_before`` names. Return None if the family
        names none, or if the state had no such entry.
        """
        return self._state_entries[place]

    def done(self) -> None:
        """Free the copies that no later step uses; call this after measuring a step."""
        if self.copy_plan is not None:
            return
        self._grads = [None] * len(self._layers)  # not reused, unlike copies of weights
        # The state of some optimizers does not show that a layer has done its first step.
        stepped = (self._layers[i].parameter.grad is not None for i in range(len(self._layers)))
        self._new -= {i for i, did in enumerate(stepped) if did and self._weights[i] is not None}

    def _is_invertible(self, group: Group) -> bool:
        """Return whether the state after a step suffices to compute a group's weights before it."""
        if not self._family.invertible(group):
            return False
        rate = float_or_tensor(group["lr"])
        if isinstance(rate, Tensor):
            return True
        decay = sum(float(group.get(name, 0.0)) for name in ("weight_decay", "lambd"))
        return rate > 0 and rate * decay < 0.5  # else 1 − ηλ may be near 0

    def _may_change(self, parameter: Tensor) -> bool:
        # A hook that is called later may still set the gradient if the parameter requires one.
        # An optimizer that is not known may change a parameter that has no gradient.
        return parameter.grad is not None or parameter.requires_grad or not self._family.name

    def _can_undo(self, place: int, layer: Layer) -> bool:
        return (
            # Before the first step, weights may be 0: computing them afterwards would be inexact.
            place not in self._new
            and layer.parameter.numel() > SMALL
            and layer.parameter.dtype in _INVERTIBLE
        )


@dataclass(frozen=True, slots=True, eq=False)
class _CopyPlan:
    """Which weights to copy before each step, as long as :meth:`is_valid` returns True.

    Attributes
    ----------
    invertible : list of bool
        For each parameter group, whether its weights before a step can be computed from the state
        after it.
    unchanged : list of Tensor
        Parameters that are not copied because steps do not change them: they have no gradient and
        do not require one.
    weights : list of Tensor or None
        For each layer, the tensor to copy its weights to, or None if they are not copied.
    sources, copies : list of Tensor
        The parameters to copy, and the tensors to copy them to.
    """

    invertible: list[bool]
    unchanged: list[Tensor]
    weights: list[Tensor | None]
    sources: list[Tensor]
    copies: list[Tensor]

    def is_valid(self, invertible: list[bool]) -> bool:
        """Return whether this plan still lists the right copies for the next step.

        ``invertible`` says for each parameter group whether its weights before that step can be
        computed from the state after it.
        """
        return invertible == self.invertible and not any(
            p.requires_grad or p.grad is not None for p in self.unchanged
        )


def _is_new(state: Mapping[str, Any] | None) -> bool:
    """Return whether a layer with this state has not done its first step yet.

    This does not synchronize: with a step count on an accelerator, the answer is False.
    """
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
