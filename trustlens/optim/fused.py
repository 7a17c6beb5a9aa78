"""Select the parameters of `Lamb` and `Lars` that a fused step can update.

A fused step takes two passes over a layer and allocates no temporary tensors. Its tensors must be
dense and contiguous. A compiled loop (:mod:`trustlens.optim.fused_cpu`) steps float32 tensors on
the CPU. Triton kernels (:mod:`trustlens.optim.fused_cuda`) step float32, float16 and bfloat16
tensors on a GPU.

The optimizers step all other parameters with torch's foreach operations. If the loop or the kernels
cannot be built, they step all parameters in this way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from operator import is_
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import Parameter

from trustlens.errors import UsageError
from trustlens.kernels.device import is_interpreted
from trustlens.optim import fused_cpu, fused_cuda

State = dict[str, Any]
Rows = fused_cpu.Rows | fused_cuda.Rows

_MISSING: Final = {
    "cpu": "no C compiler here to build the fused step: install one, or",
    "cuda": "no Triton here that can build the fused step: install triton, or",
}


class Fused:
    """Decides in each step which parameters of an optimizer are stepped fused.

    Each `Lamb` and `Lars` has one instance. The instance stores the addresses of the tensors and
    decides anew only if a tensor has changed.
    """

    def __init__(self, optimizer: str) -> None:
        self._optimizer = optimizer
        self._groups: dict[int, _Group] = {}

    def divide(
        self,
        group_index: int,
        group: Mapping[str, Any],
        state: Mapping[Tensor, State],
        make_state: Callable[[Tensor], State],
        entries: tuple[str, ...],
    ) -> tuple[list[Rows], list[Tensor]]:
        """Divide the parameters of a group for the next step.

        Parameters
        ----------
        group_index : int
            The group's index in ``param_groups``.
        group : mapping
            The group's parameters and options.
        state : mapping
            The optimizer's state.
        make_state : callable
            Takes a parameter and returns its state, which it creates at the parameter's first step.
        entries : tuple of str
            Names of the state entries that the fused step reads or writes.

        Returns
        -------
        list of Rows
            The parameters to step fused that have a gradient: one item for each device.
        list of Tensor
            The other parameters, also those without a gradient.

        Raises
        ------
        UsageError
            If the group has ``fused=True`` and a parameter with a gradient cannot be stepped fused.
        """
        params: list[Tensor] = group["params"]
        if group["fused"] is False or torch.compiler.is_compiling() or _is_captured():
            return [], params
        cached = self._groups.get(group_index)
        rows = cached.rows(state) if cached and cached.is_valid(params, entries) else None
        if cached is None or rows is None:
            cached = self._groups[group_index] = _Group(params, state, make_state, entries)
            rows = cached.rows(state)
        rest = params if rows is None else cached.rest
        if group["fused"]:
            self._require(rest, state, entries)
        return rows or [], rest

    def _require(
        self, rest: list[Tensor], state: Mapping[Tensor, State], entries: tuple[str, ...]
    ) -> None:
        for p in rest:
            if p.grad is not None:
                _require_rows(self._optimizer, p.device)
                obstacle = _obstacle(p, state.get(p, {}), entries) or "an unsuitable tensor"
                raise UsageError(
                    f"{self._optimizer} got fused=True and {obstacle}: "
                    "leave fused out to step such parameters with foreach operations"
                )


class _Group:
    """One parameter group, divided into parameters that can be stepped fused and others.

    The attribute ``rest`` contains the others. Parameters that never had a gradient are among them.
    """

    def __init__(
        self,
        params: list[Tensor],
        state: Mapping[Tensor, State],
        make_state: Callable[[Tensor], State],
        entries: tuple[str, ...],
    ) -> None:
        self._params, self._names = list(params), entries
        self.rest: list[Tensor] = []
        fused: dict[torch.device, list[Tensor]] = {}
        for p in params:
            if (p.grad is None and p not in state) or _obstacle(p):
                self.rest.append(p)
                continue
            layer = make_state(p)
            ratio = layer.get("trust_ratio")
            if ratio is None:
                layer["trust_ratio"] = torch.ones((), dtype=torch.float32, device=p.device)
            elif ratio.dtype is not torch.float32:  # loading a checkpoint changed the dtype
                layer["trust_ratio"] = ratio.float()
            chosen = self.rest if _obstacle(p, layer, entries) else fused.setdefault(p.device, [])
            chosen.append(p)
        self._tables = [
            _Table(device, on_device, [state[p] for p in on_device], entries)
            for device, on_device in fused.items()
        ]

    def is_valid(self, params: list[Tensor], entries: tuple[str, ...]) -> bool:
        """Return whether this division still holds for the group's parameters and state entries."""
        return (
            len(params) == len(self._params)
            and all(map(is_, params, self._params))
            and entries == self._names
            and not any(p.grad is not None and not _obstacle(p) for p in self.rest)
        )

    def rows(self, state: Mapping[Tensor, State]) -> list[Rows] | None:
        """Return one `Rows` for each device: the parameters to step fused that have a gradient.

        Return None if a tensor has moved or was replaced, so that the group must be divided again.
        """
        found = [table.rows(state) for table in self._tables]
        rows = [on_device for each in found if each is not None for on_device in each]
        return None if None in found else rows


class _Table:
    """The parameters of a group on one device that can be stepped fused.

    An instance stores the addresses of the parameters and of their state entries, and the dtypes of
    the parameters.
    """

    def __init__(
        self,
        device: torch.device,
        params: list[Tensor],
        states: list[State],
        entries: tuple[str, ...],
    ) -> None:
        self._names, self._params = entries, params
        self._entries = [[s[name] for s in states] for name in entries]
        self._sizes, self._dtypes = [p.numel() for p in params], [p.dtype for p in params]
        self._addresses = self._current_addresses()
        self._device_index = params[0].get_device()
        self._rows_class = _require_rows("", device)
        self._all = self._subset = self._rows_of(range(len(params)))
        self._subset_indices: list[int] = list(range(len(params)))

    def _rows_of(self, indices: Any) -> Rows:
        entries = {
            name: [each[i] for i in indices]
            for name, each in zip(self._names, self._entries, strict=True)
        }
        return self._rows_class([self._params[i] for i in indices], entries)

    def rows(self, state: Mapping[Tensor, State]) -> list[Rows] | None:
        """Return a list of one `Rows` with the parameters that have a gradient.

        The list is empty if no parameter has a gradient. Return None if a tensor has
        moved or was replaced, or if a fused step cannot read a gradient.
        """
        if not self._is_unchanged(state):
            return None
        given = [p.grad for p in self._params]
        grads = [g for g in given if g is not None]
        if not grads:
            return []
        rows, sizes, dtypes = self._all, self._sizes, self._dtypes
        if len(grads) < len(given):
            indices = [i for i, g in enumerate(given) if g is not None]
            if indices != self._subset_indices:
                self._subset_indices, self._subset = indices, self._rows_of(indices)
            rows = self._subset
            sizes, dtypes = [sizes[i] for i in indices], [dtypes[i] for i in indices]
        addresses = _gradient_addresses(grads, sizes, self._device_index)
        if addresses is None or [g.dtype for g in grads] != dtypes:
            return None
        rows.set_gradients(addresses)
        return [rows]

    def _is_unchanged(self, state: Mapping[Tensor, State]) -> bool:
        """Return whether parameters and state entries are still the same tensors.

        They must also have the same addresses as before.
        """
        states = [state.get(p) for p in self._params]
        if None in states:
            return False
        try:
            entries = [[s[name] for s in states if s is not None] for name in self._names]
        except KeyError:
            return False
        return (
            all(all(map(is_, now, then)) for now, then in zip(entries, self._entries, strict=True))
            and all(map(Tensor.is_contiguous, self._params))
            and self._current_addresses() == self._addresses
        )

    def _current_addresses(self) -> list[list[int]]:
        return [list(map(Tensor.data_ptr, each)) for each in (self._params, *self._entries)]


def _gradient_addresses(grads: list[Tensor], sizes: list[int], device: int) -> list[int] | None:
    """Return the addresses of gradients; None if a fused step cannot read one of the gradients.

    This runs in every step. Calls of ``map`` are faster here than a Python loop.
    """
    if not {Tensor, Parameter}.issuperset(map(type, grads)) or any(g.is_sparse for g in grads):
        return None
    if set(map(Tensor.get_device, grads)) != {device} or not all(map(Tensor.is_contiguous, grads)):
        return None
    addresses = list(map(Tensor.data_ptr, grads))
    if list(map(Tensor.numel, grads)) != sizes:
        return None
    if 0 in addresses and any(n and not at for n, at in zip(sizes, addresses, strict=True)):
        return None
    return addresses


def _obstacle(p: Tensor, state: State | None = None, entries: tuple[str, ...] = ()) -> str:
    """Describe the tensor that prevents a fused step of a parameter, for an error message.

    Return an empty string if no tensor prevents it.
    """
    rows = _rows_class(p.device)
    tensors: dict[str, Any] = {"parameter": p, "gradient": p.grad}
    tensors |= {name: state[name] for name in entries if state and name in state}
    for name, t in tensors.items():
        if t is None:
            continue
        if type(t) not in (Tensor, Parameter):
            return f"a {name} of type {type(t).__name__}"
        dtype = torch.float32 if name in ("step", "trust_ratio") else p.dtype
        device = torch.device("cpu") if name == "step" else p.device
        readable = rows is not None and p.dtype in rows.dtypes and t.layout is torch.strided
        described = f"a {name} of {t.dtype} on {t.device}"
        if not readable or t.dtype is not dtype or t.device != device:
            return described
        size = 1 if name in ("step", "trust_ratio") else p.numel()
        if not t.is_contiguous() or t.numel() != size or (size and not t.data_ptr()):
            return f"{described} that is not contiguous"
    return ""


@functools.cache
def _rows_class(device: torch.device) -> type[Rows] | None:
    """Return the class for fused steps on a device; None if fused steps do not work there."""
    if device.type == "cuda" or (device.type == "cpu" and is_interpreted()):
        return fused_cuda.Rows if fused_cuda.is_usable(device) else None
    return fused_cpu.Rows if device.type == "cpu" and fused_cpu.library() is not None else None


def _is_captured() -> bool:
    """Return whether a CUDA graph is being captured. Its replays would use outdated addresses."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _require_rows(optimizer: str, device: torch.device) -> type[Rows]:
    rows = _rows_class(device)
    if rows is None:
        missing = _MISSING.get(device.type, f"no fused step for {device.type}:")
        raise UsageError(f"{optimizer} got fused=True, and there is {missing} leave fused out")
    return rows


def check(optimizer: str, group: Mapping[str, Any]) -> None:
    """Check the option ``fused`` of a group.

    Raises
    ------
    UsageError
        If the option is not None, True or False.
    """
    fused = group["fused"]
    if not (fused is None or isinstance(fused, bool)):
        raise UsageError(f"{optimizer} got fused={fused!r}: give None, True or False")


def check_devices(optimizer: str, group: Mapping[str, Any]) -> None:
    """Check the devices of a group's parameters if the group has ``fused=True``.

    Raises
    ------
    UsageError
        If fused steps do not work on one of the devices.
    """
    if group["fused"]:
        for device in {p.device for p in group["params"]}:
            _require_rows(optimizer, device)
