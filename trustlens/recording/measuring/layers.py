"""Find the layers of optimizers and give them stable names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, nn
from torch.optim import Optimizer

from trustlens.store.run_info import LayerInfo, storable

_COMPILED: Final = "_orig_mod."
"""Prefix that torch.compile adds to the parameter names of a module, at any level."""

_PARALLEL: Final = "module."
"""Prefix that DistributedDataParallel adds to all parameter names of a model."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A parameter of an optimizer, its parameter group, and its description in ``run.json``."""

    parameter: Tensor
    group: dict[str, Any]
    info: LayerInfo


def find_layers(optimizers: Sequence[Optimizer], model: nn.Module | None) -> list[Layer]:
    """Return the layers of all optimizers.

    With a model, layers come in the order of its parameters and have their names; parameters that
    are not in the model come last. Without a name from a model, a layer has the name given to the
    optimizer (``model.named_parameters()``), or else a name by position (``group0.param3``).
    """
    names = _model_names(model) if model is not None else {}
    order = {identity: number for number, identity in enumerate(names)}
    found = [
        (parameter, group, group_index, position, index)
        for index, optimizer in enumerate(optimizers)
        for group_index, group in enumerate(optimizer.param_groups)
        for position, parameter in enumerate(group["params"])
    ]
    found.sort(key=lambda entry: order.get(id(entry[0]), len(order)))
    taken: set[str] = set()
    layers: list[Layer] = []
    for parameter, group, group_index, position, index in found:
        default = f"group{group_index}.param{position}"
        if len(optimizers) > 1:
            default = f"optimizer{index}.{default}"
        name = storable(names.get(id(parameter)) or _given_name(group, position) or default)
        dtype = str(parameter.dtype).removeprefix("torch.")
        info = LayerInfo(_unique(name, taken), tuple(parameter.shape), dtype, group_index, index)
        layers.append(Layer(parameter, group, info))
    return layers


def _model_names(model: nn.Module) -> dict[int, str]:
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters():  # a shared parameter: its first name only
        names[id(parameter)] = name.replace(_COMPILED, "").removeprefix(_PARALLEL)
    return names


def _given_name(group: dict[str, Any], position: int) -> str | None:
    names = group.get("param_names")
    return str(names[position]) if names else None


def _unique(name: str, taken: set[str]) -> str:
    unique, count = name, 2
    while unique in taken:
        unique, count = f"{name}#{count}", count + 1
    taken.add(unique)
    return unique
