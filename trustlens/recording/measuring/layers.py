"""From the parameters of optimizers to layers with stable names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, nn
from torch.optim import Optimizer

from trustlens.store.run_info import LayerInfo, storable

_COMPILED: Final = "_orig_mod."
"""What torch.compile prepends to the names within a module."""

_PARALLEL: Final = "module."
"""The same of DistributedDataParallel, which wraps a whole model."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A parameter, the group whose options hold for it, and what ``run.json`` says of it."""

    parameter: Tensor
    group: dict[str, Any]
    info: LayerInfo


def find_layers(optimizers: Sequence[Optimizer], model: nn.Module | None) -> list[Layer]:
    """Return the layers of the optimizers, in the order of the model where there is one.

    A name comes from the model; without one, from the names that the optimizer was given
    (``model.named_parameters()``); else it is made of the places, ``group0.param3``.
    """
    names = _model_names(model) if model is not None else {}
    order = {identity: place for place, identity in enumerate(names)}
    found = [
        (parameter, group, group_index, position, index)
        for index, optimizer in enumerate(optimizers)
        for group_index, group in enumerate(optimizer.param_groups)
        for position, parameter in enumerate(group["params"])
    ]
    found.sort(key=lambda place: order.get(id(place[0]), len(order)))
    taken: set[str] = set()
    layers: list[Layer] = []
    for parameter, group, group_index, position, index in found:
        made = f"group{group_index}.param{position}"
        if len(optimizers) > 1:
            made = f"optimizer{index}.{made}"
        name = storable(names.get(id(parameter)) or _given_name(group, position) or made)
        dtype = str(parameter.dtype).removeprefix("torch.")
        info = LayerInfo(_unique(name, taken), tuple(parameter.shape), dtype, group_index, index)
        layers.append(Layer(parameter, group, info))
    return layers


def _model_names(model: nn.Module) -> dict[int, str]:
    names: dict[int, str] = {}
    for given, parameter in model.named_parameters():  # a shared one comes once: its first name
        names[id(parameter)] = given.replace(_COMPILED, "").removeprefix(_PARALLEL)
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
