"""Selects the parameters of LAMB and LARS that are stepped fused: in two passes, no temporaries.

A compiled loop (:mod:`trustlens.optim.fused_cpu`) steps dense contiguous float32 tensors on the
CPU; Triton kernels (:mod:`trustlens.optim.fused_cuda`) step float32, float16 and bfloat16 on a GPU.
For all other tensors, or if these cannot be built, the optimizers use torch's foreach operations.
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
    "cpu": "no C compiler here to build its loop: install one, or",
    "cuda": "no Triton here that builds its kernels: install triton, or",
}


class Fused:
    """Divides an optimizer's groups into fused and other layers; caches addresses between steps."""

    def __init__(self, optimizer: str) -> None:
        self._optimizer = optimizer
        self._groups: dict[int, _Group] = {}

    def divide(
        self,
        place: int,
        group: Mapping[str, Any],
        state: Mapping[Tensor, State],
        make_state: Callable[[Tensor], State],
        entries: tuple[str, ...],
    ) -> tuple[list[Rows], list[Tensor]]:
        """Return the layers to step fused, by device, and the other parameters.

        Parameters
        ----------
        place : int
            The group's index.
        group : mapping
            The group's parameters and options.
        state : mapping
            The optimizer's state.
        make_state : callable
            Takes a parameter and returns its state, with new tensors if it has none yet.
        entries : tuple of str
            The state entries that the fused step reads and writes.

        Raises
        ------
        UsageError
            The group has ``fused=True``, and a parameter cannot be stepped fused.
        """
        params: list[Tensor] = group["params"]
        if group["fused"] is False or torch.compiler.is_compiling() or _is_captured():
            return [], params
        known = self._groups.get(place)
        rows = known.rows(state) if known and known.is_of(params, entries) else None
        if known is None or rows is None:
            known = self._groups[place] = _Group(params, state, make_state, entries)
            rows = known.rows(state)
        rest = params if rows is None else known.rest
        if group["fused"]:
            self._require(rest, state, entries)
        return rows or [], rest

    def _require(
        self, rest: list[Tensor], state: Mapping[Tensor, State], entries: tuple[str, ...]
    ) -> None:
        for p in rest:
            if p.grad is not None:
                _require_rows(self._optimizer, p.device)
                what = _obstacle(p, state.get(p, {}), entries) or "what its loop cannot read"
                raise UsageError(
                    f"{self._optimizer} got fused=True and {what}: "
                    "leave fused out, so that only what can be fused is"
                )


class _Group:
    """The layers of a group that can be stepped fused: those that have or had a gradient."""

    def __init__(
        self,
        params: list[Tensor],
        state: Mapping[Tensor, State],
        make_state: Callable[[Tensor], State],
        entries: tuple[str, ...],
    ) -> None:
        self._of, self._names = list(params), entries
        self.rest: list[Tensor] = []
        fit: dict[torch.device, list[Tensor]] = {}
        for p in params:
            if (p.grad is None and p not in state) or _obstacle(p):
                self.rest.append(p)
                continue
            of_layer = make_state(p)
            ratio = of_layer.get("trust_ratio")
            if ratio is None:
                of_layer["trust_ratio"] = torch.ones((), dtype=torch.float32, device=p.device)
            elif ratio.dtype is not torch.float32:  # a checkpoint gave it the parameter's dtype
                of_layer["trust_ratio"] = ratio.float()
            chosen = self.rest if _obstacle(p, of_layer, entries) else fit.setdefault(p.device, [])
            chosen.append(p)
        self._tables = [
            _Table(device, of_device, [state[p] for p in of_device], entries)
            for device, of_device in fit.items()
        ]

    def is_of(self, params: list[Tensor], entries: tuple[str, ...]) -> bool:
        """Return whether this object still describes the group's parameters and entries."""
        return (
            len(params) == len(self._of)
            and all(map(is_, params, self._of))
            and entries == self._names
            and not any(p.grad is not None and not _obstacle(p) for p in self.rest)
        )

    def rows(self, state: Mapping[Tensor, State]) -> list[Rows] | None:
        """Return the layers with a gradient; None if a tensor has moved or was replaced."""
        found = [table.rows(state) for table in self._tables]
        rows = [of_device for each in found if each is not None for of_device in each]
        return None if None in found else rows


class _Table:
    """Layers of a group on one device, with the addresses and types of their tensors."""

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
        self._addresses = self._addresses_now()
        self._index = params[0].get_device()
        self._make = _require_rows("", device)
        self._all = self._some = self._rows_of(range(len(params)))
        self._which: list[int] = list(range(len(params)))

    def _rows_of(self, which: Any) -> Rows:
        entries = {
            name: [each[i] for i in which]
            for name, each in zip(self._names, self._entries, strict=True)
        }
        return self._make([self._params[i] for i in which], entries)

    def rows(self, state: Mapping[Tensor, State]) -> list[Rows] | None:
        """Return the layers with a gradient; None if a tensor has moved or was replaced."""
        if not self._is_unchanged(state):
            return None
        given = [p.grad for p in self._params]
        grads = [g for g in given if g is not None]
        if not grads:
            return []
        rows, sizes, dtypes = self._all, self._sizes, self._dtypes
        if len(grads) < len(given):
            which = [i for i, g in enumerate(given) if g is not None]
            if which != self._which:
                self._which, self._some = which, self._rows_of(which)
            rows = self._some
            sizes, dtypes = [sizes[i] for i in which], [dtypes[i] for i in which]
        addresses = _readable(grads, sizes, self._index)
        if addresses is None or [g.dtype for g in grads] != dtypes:
            return None
        rows.take(addresses)
        return [rows]

    def _is_unchanged(self, state: Mapping[Tensor, State]) -> bool:
        """Return whether parameters and state are the same tensors at the same addresses."""
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
            and self._addresses_now() == self._addresses
        )

    def _addresses_now(self) -> list[list[int]]:
        return [list(map(Tensor.data_ptr, each)) for each in (self._params, *self._entries)]


def _readable(grads: list[Tensor], sizes: list[int], device: int) -> list[int] | None:
    """Return the addresses of gradients, or None if a fused step cannot read one.

    Runs in every step, so it uses only calls that are mapped over lists.
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
    """Return why a layer cannot be stepped fused; empty if it can."""
    rows = _rows_class(p.device)
    of_layer: dict[str, Any] = {"parameter": p, "gradient": p.grad}
    of_layer |= {name: state[name] for name in entries if state and name in state}
    for name, t in of_layer.items():
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
    """Return the class that steps layers fused on a device; None if there is none or it fails."""
    if device.type == "cuda" or (device.type == "cpu" and is_interpreted()):
        return fused_cuda.Rows if fused_cuda.is_there(device) else None
    return fused_cpu.Rows if device.type == "cpu" and fused_cpu.library() is not None else None


def _is_captured() -> bool:
    """Return whether a CUDA graph is being captured, which would freeze the addresses."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _require_rows(optimizer: str, device: torch.device) -> type[Rows]:
    rows = _rows_class(device)
    if rows is None:
        missing = _MISSING.get(device.type, f"no fused step for {device.type}:")
        raise UsageError(f"{optimizer} got fused=True, and there is {missing} leave fused out")
    return rows


def check(optimizer: str, group: Mapping[str, Any]) -> None:
    """Check that a group's ``fused`` is None, True or False.

    Raises
    ------
    UsageError
        It is something else.
    """
    fused = group["fused"]
    if not (fused is None or isinstance(fused, bool)):
        raise UsageError(f"{optimizer} got fused={fused!r}: give None, True or False")


def check_devices(optimizer: str, group: Mapping[str, Any]) -> None:
    """Check that a group with ``fused=True`` can be stepped fused on its parameters' devices.

    Raises
    ------
    UsageError
        A device has no fused step.
    """
    if group["fused"]:
        for device in {p.device for p in group["params"]}:
            _require_rows(optimizer, device)
