"""Read what one optimizer did to each of its layers in its last step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trustlens.kernels.tensors import upcast_half
from trustlens.recording.measuring.layers import Layer
from trustlens.recording.measuring.snapshots import WeightSnapshots
from trustlens.recording.optimizers import Family, Stepped
from trustlens.recording.statistics import LayerStep


class LayerReader:
    """Finds the tensors and the direction of a layer in the last step of one optimizer.

    It reads the parameter, the optimizer's state and the copies in ``snapshots``.
    """

    def __init__(self, optimizer: Optimizer, family: Family, snapshots: WeightSnapshots) -> None:
        self._optimizer: Any = optimizer
        self._family = family
        self._snapshots = snapshots
        self._layers: list[Layer] = []
        self._grad_factor: float | Tensor = 1.0

    def follow(self, layers: Sequence[Layer]) -> None:
        """Set the layers to read. The other methods take a layer's index in this list."""
        self._layers = list(layers)

    def find_grad_factor(self) -> None:
        """Compute the factor by which the step scaled all gradients; :meth:`read` uses it."""
        self._grad_factor = 1.0
        if self._family.grad_factor is not None:
            grads = [self._given_grad(place) for place in range(len(self._layers))]
            present = [grad for grad in grads if grad is not None]
            if present:
                self._grad_factor = self._family.grad_factor(self._optimizer, present)

    def read(self, place: int, *, fused: bool = False, counts: Tensor | None = None) -> LayerStep:
        """Return a layer's weights before and after the last step, its gradient and its direction.

        Parameters
        ----------
        place : int
            Index of the layer in the list given to :meth:`follow`.
        fused : bool
            Whether the optimizer's fused step computed the layer's sums. If so, the weights before
            the step are not needed, and the result's ``before`` is the same tensor as ``after``.
            None would mean that ``before`` must be computed from ``after``.
        counts : Tensor, optional
            Step counts of several layers, to use instead of the layer's own count. Coefficients of
            the direction that depend on the step count then have one value per layer.
        """
        layer = self._layers[place]
        parameter, group = layer.parameter, layer.group
        before = self._snapshots.weights(place)
        after = _dense_real(parameter.detach())
        before = after if fused else None if before is None else _dense_real(before)
        given = self._given_grad(place)
        copied = given is not None and given is not parameter.grad
        if given is None:
            return LayerStep(before, after, None, None)
        state = self._optimizer.state.get(parameter, {})
        if counts is not None:
            state = {**state, "step": counts}
        if parameter.is_complex() or given.layout is not torch.strided:
            state = {key: _dense_real(value) for key, value in state.items()}
        grad = self._used_grad(given, copied, group, state)
        entry = self._snapshots.state_entry(place)
        direction = self._family.direction(
            Stepped(group, state, grad, after, before, given, entry, self._optimizer)
        )
        return LayerStep(before, after, grad, direction)

    def _given_grad(self, place: int) -> Tensor | None:
        copy = self._snapshots.grad(place)
        return self._layers[place].parameter.grad if copy is None else copy

    def _used_grad(
        self, given: Tensor, copied: bool, group: Mapping[str, Any], state: Mapping[str, Any]
    ) -> Tensor:
        """Return the gradient as the step used it: dense, real and scaled.

        The gradient is negated if the optimizer maximizes.
        """
        grad = _dense_real(given)
        scale = getattr(self._optimizer, "grad_scale", None)
        if copied and scale is not None:
            grad = grad / scale  # such an optimizer divides by the loss scale itself
        if group.get("maximize"):
            grad = -grad
        if group.get("max_grad_norm") and "grad_divisor" in state:
            # Lamb's internal clipping does not change p.grad, and divides 16-bit floats in float32.
            grad = (upcast_half([grad])[0] / state["grad_divisor"]).to(grad.dtype)
        factor = self._grad_factor
        if isinstance(factor, Tensor) or factor != 1:
            grad = grad * (factor.to(grad.device) if isinstance(factor, Tensor) else factor)
        return grad


def _dense_real(value: Any) -> Any:
    """Return a sparse tensor as dense, and a complex one as real with a last dimension of size 2.

    Other values are returned unchanged.
    """
    if not isinstance(value, Tensor):
        return value
    if value.layout is not torch.strided:
        value = value.to_dense()
    return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
