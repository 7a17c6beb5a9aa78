"""Operations on lists of tensors for `Lamb` and `Lars`.

Only `to_float` and `check_number` wait for a GPU, and only if they are given a tensor on it.
"""

# torch's foreach operations have private names only:
# ruff: noqa: SLF001
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from trustlens.errors import UsageError
from trustlens.kernels.tensors import upcast_half


def with_gradient(params: Iterable[Tensor], optimizer: str) -> list[list[Tensor]]:
    """Return the parameters that have a gradient, in one list for each device and dtype.

    Raises
    ------
    UsageError
        If a gradient is sparse or a parameter is complex.
    """
    lists: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for p in params:
        if p.grad is None:
            continue
        if p.grad.is_sparse or p.is_complex():
            kind = "a sparse gradient" if p.grad.is_sparse else "a complex parameter"
            raise UsageError(
                f"{optimizer} got {kind} of shape {tuple(p.shape)}: "
                "give it real parameters with dense gradients"
            )
        lists.setdefault((p.device, p.dtype), []).append(p)
    return list(lists.values())


def gradients(params: list[Tensor]) -> list[Tensor]:
    """Return the gradients of parameters; each parameter must have one."""
    return [p.grad for p in params if p.grad is not None]


def norms(tensors: list[Tensor]) -> Tensor:
    """Return the Euclidean norms of tensors of one device and dtype, shape (tensors,).

    The norms are float64 if the tensors are float64 or on the CPU, else float32. On the CPU, the
    relative error of torch's float32 norm of 4 million elements would be 9e-5.
    """
    first = tensors[0]
    wide = first.device.type == "cpu" or first.dtype == torch.float64
    return torch.stack(
        torch._foreach_norm(tensors, 2, dtype=torch.float64 if wide else torch.float32)
    )


def trust_ratios(
    numerators: Tensor,
    denominators: Tensor,
    adapted: Tensor,
    clip: tuple[float, float] | None = None,
) -> Tensor:
    """Return the trust ratios numerator / denominator, clamped to `clip`.

    The ratio is 1 where `adapted` is False. All tensors have the shape (layers,).
    """
    ratio = numerators / denominators
    if clip is not None:
        ratio = ratio.clamp(*clip)
    return torch.where(adapted, ratio, 1.0)


def scale_(tensors: list[Tensor], factor: float | Tensor) -> None:
    """Multiply all tensors in place by one factor: a number, or a tensor of one element."""
    if isinstance(factor, Tensor):
        torch._foreach_mul_(tensors, [factor.reshape(())] * len(tensors))
    else:
        torch._foreach_mul_(tensors, factor)


def scale_each_(tensors: list[Tensor], factors: Tensor) -> None:
    """Multiply each tensor in place by its own factor. `factors` has the shape (tensors,)."""
    torch._foreach_mul_(tensors, list(factors.unbind()))


def descend_(params: list[Tensor], directions: list[Tensor], lr: float | Tensor) -> None:
    """Subtract lr · direction from each parameter in place; round the new parameter only once."""
    if isinstance(lr, Tensor):
        steps = torch._foreach_mul(upcast_half(directions), [lr.reshape(())] * len(directions))
        torch._foreach_sub_(params, steps)
    else:
        torch._foreach_add_(params, directions, alpha=-lr)


def to_float(value: float | Tensor) -> float:
    """Return a number, or a tensor of one element, as a float. Wait for the tensor's device."""
    return float(value.item() if isinstance(value, Tensor) else value)


def check_number(
    optimizer: str,
    group: Mapping[str, Any],
    name: str,
    *,
    below: float = math.inf,
) -> None:
    """Check that an option of a group is a number in [0, below), or a tensor with such a number.

    Raises
    ------
    UsageError
        If the option is of another type or shape, or out of this range.
    """
    value = group[name]
    if isinstance(value, Tensor) and value.numel() != 1:
        raise UsageError(
            f"{optimizer} got {name} as a tensor of shape {tuple(value.shape)}: "
            "give a number or a tensor of one element"
        )
    if not (isinstance(value, (int, float, Tensor)) and 0 <= value < below):
        limit = "" if below == math.inf else f" and below {below:g}"
        raise UsageError(f"{optimizer} got {name}={value!r}: give a number of at least 0{limit}")
