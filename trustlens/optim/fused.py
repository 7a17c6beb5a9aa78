"""Which parameters of LAMB and LARS a compiled loop steps: two passes, without temporaries.

The loop (:mod:`trustlens.optim.loop`) takes dense contiguous float32 on the CPU. Where it cannot
be built, or for other tensors, the optimizers use torch's operations on lists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from trustlens.errors import UsageError
from trustlens.optim.loop import PLACES, Rows, library

State = dict[str, Any]


class Fused:
    """What of an optimizer's groups the loop steps; addresses are kept from step to step."""

    def __init__(self, optimizer: str) -> None:
        self._optimizer = optimizer
        self._tables: dict[int, _Table] = {}

    def divide(
        self,
        place: int,
        group: Mapping[str, Any],
        state: Mapping[Tensor, State],
        make_state: Callable[[Tensor], State],
        entries: tuple[str, ...],
    ) -> tuple[Rows | None, list[Tensor]]:
        """Return the layers that the loop steps, and the parameters that are left.

        Parameters
        ----------
        place : int
            Which of the optimizer's groups it is.
        group : mapping
            Its parameters and options.
        state : mapping
            The optimizer's state.
        make_state : callable
            Returns that of a parameter, made where there is none.
        entries : tuple of str
            What of it the loop reads and writes.

        Raises
        ------
        UsageError
            The group is to be stepped by the loop only, and cannot.
        """
        params: list[Tensor] = group["params"]
        if group["fused"] is False or torch.compiler.is_compiling():
            return None, params
        if not any(p.dtype is torch.float32 and p.is_cpu for p in params) or library() is None:
            rows, rest = None, params
        else:
            table = self._tables.get(place)
            rows = table.rows(state) if table and table.is_of(params, entries) else None
            if table is None or rows is None:
                table = self._tables[place] = _pack(params, state, make_state, entries)
                rows = table.rows(state)
            rest = params if rows is None else table.rest
        if group["fused"]:
            self._require(rest, state, entries)
        return (rows if rows and rows.params else None), rest

    def _require(
        self, rest: list[Tensor], state: Mapping[Tensor, State], entries: tuple[str, ...]
    ) -> None:
        check(self._optimizer, {"fused": True})
        for p in rest:
            if p.grad is not None:
                what = _obstacle(p, state.get(p, {}), entries) or "what its loop cannot read"
                raise UsageError(
                    f"{self._optimizer} got fused=True and {what}: "
                    "leave fused out, so that only what can be fused is"
                )


class _Table:
    """The layers of a group that the loop can step, packed, and all that they were packed from."""

    def __init__(
        self, of: list[Tensor], params: list[Tensor], states: list[State], entries: tuple[str, ...]
    ) -> None:
        self._of, self._names = list(of), entries
        kept = set(map(id, params))
        self.rest = [p for p in of if id(p) not in kept]
        self._params = params
        self._entries = [[s[name] for s in states] for name in entries]
        self._sizes = [p.numel() for p in params]
        self._addresses = self._lie()
        packed = np.zeros((len(params), len(set(PLACES.values()))), np.int64)
        packed[:, PLACES["size"]] = self._sizes
        for name, addresses in zip(("weight", *entries), self._addresses, strict=True):
            packed[:, PLACES[name]] = addresses
        self._all = self._some = Rows(params, packed)
        self._which: list[int] = list(range(len(params)))

    def is_of(self, params: list[Tensor], entries: tuple[str, ...]) -> bool:
        """Tell whether the layers of a group that can be stepped are these."""
        return (
            len(params) == len(self._of)
            and all(map(is_, params, self._of))
            and entries == self._names
            and not any(p.is_cpu and p.grad is not None and not _obstacle(p) for p in self.rest)
        )

    def rows(self, state: Mapping[Tensor, State]) -> Rows | None:
        """Return the layers with a gradient; None if something lies elsewhere than it did."""
        if not self._is_there(state):
            return None
        given = [p.grad for p in self._params]
        grads = [g for g in given if g is not None]
        rows, sizes = self._all, self._sizes
        if len(grads) < len(given):
            which = [i for i, g in enumerate(given) if g is not None]
            if which != self._which:
                params = [self._params[i] for i in which]
                self._which, self._some = which, Rows(params, self._all.packed[which])
            rows, sizes = self._some, [sizes[i] for i in which]
        addresses = _readable(grads, sizes)
        if addresses is None:
            return None
        rows.packed[:, PLACES["grad"]] = addresses
        return rows

    def _is_there(self, state: Mapping[Tensor, State]) -> bool:
        """Tell whether parameters and state are the tensors that they were, and where they were."""
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
            and self._lie() == self._addresses
        )

    def _lie(self) -> list[list[int]]:
        return [list(map(Tensor.data_ptr, each)) for each in (self._params, *self._entries)]


def _pack(
    params: list[Tensor],
    state: Mapping[Tensor, State],
    make_state: Callable[[Tensor], State],
    entries: tuple[str, ...],
) -> _Table:
    """Pack the layers that the loop can step: those with a gradient, and those that had one."""
    fit: list[Tensor] = []
    states: list[State] = []
    for p in params:
        if (p.grad is None and p not in state) or _obstacle(p):
            continue
        of_layer = make_state(p)
        if "trust_ratio" not in of_layer:
            of_layer["trust_ratio"] = torch.ones((), dtype=torch.float32, device="cpu")
        if not _obstacle(p, of_layer, entries):
            fit.append(p)
            states.append(of_layer)
    return _Table(params, fit, states, entries)


def _readable(grads: list[Tensor], sizes: list[int]) -> list[int] | None:
    """Return where gradients lie; None if the loop cannot read them. Quickly: in each step."""
    if not grads:
        return []
    if not {Tensor, Parameter}.issuperset(map(type, grads)) or any(g.is_sparse for g in grads):
        return None
    if {g.dtype for g in grads} != {torch.float32} or not all(map(Tensor.is_contiguous, grads)):
        return None
    addresses = list(map(Tensor.data_ptr, grads))
    if list(map(Tensor.numel, grads)) != sizes:
        return None
    if 0 in addresses and any(n and not at for n, at in zip(sizes, addresses, strict=True)):
        return None
    return addresses


def _obstacle(p: Tensor, state: State | None = None, entries: tuple[str, ...] = ()) -> str:
    """Return what keeps the loop from stepping a layer; nothing if it can."""
    of_layer: dict[str, Any] = {"parameter": p, "gradient": p.grad}
    of_layer |= {name: state[name] for name in entries if state and name in state}
    for name, t in of_layer.items():
        if t is None:
            continue
        told = f"a {name} of {t.dtype} on {t.device}"
        if type(t) not in (Tensor, Parameter):
            return f"a {name} of type {type(t).__name__}"
        if t.dtype is not torch.float32 or not t.is_cpu or t.layout is not torch.strided:
            return told
        size = 1 if name in ("step", "trust_ratio") else p.numel()
        if not t.is_contiguous() or t.numel() != size or (size and not t.data_ptr()):
            return f"{told} that is not contiguous"
    return ""


def check(optimizer: str, group: Mapping[str, Any]) -> None:
    """Require that a group's ``fused`` is an option that this machine has.

    Raises
    ------
    UsageError
        It is not.
    """
    fused = group["fused"]
    if not (fused is None or isinstance(fused, bool)):
        raise UsageError(f"{optimizer} got fused={fused!r}: give None, True or False")
    if fused and library() is None:
        raise UsageError(
            f"{optimizer} got fused=True, and there is no C compiler here to build its loop: "
            "install one, or leave fused out"
        )
