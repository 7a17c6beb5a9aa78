"""The hooks of one optimizer: what was given is called around each step, once a step."""

# ruff: noqa: SLF001
# pyright: reportPrivateUsage=false
from __future__ import annotations

import sys
from collections.abc import Callable
from types import CodeType
from typing import Any, Final, Protocol, TypeVar

import torch
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from trustlens.recording.hooks.grad_scaler import follow_scalers, found_inf, leave_scalers
from trustlens.recording.unwrap import unwrapped

Result = TypeVar("Result")

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""The arguments and keyword arguments of a call of ``step``; its first is the optimizer."""

_TORCH_STEP: Final[CodeType] = Optimizer.profile_hook_step(lambda _: None).__code__
"""What torch wraps around each class's ``step``; it calls the hooks."""


class Guard(Protocol):
    """Does some work and returns its result, or None if that failed; never raises."""

    def __call__(self, work: Callable[[], Result], /) -> Result | None:
        """Do the work."""
        ...


class StepHooks:
    """Calls ``before`` and ``after`` around each step, ``skipped`` for one left out for inf.

    For one that is captured in a CUDA graph it calls ``captured`` only: nothing may be added to it,
    and its replays call no hooks.

    All through ``guard``. ``before`` receives the arguments of the step and may return others for
    it. Each is called once a step also where a subclass's ``step`` calls its parent's, which torch
    has given hooks of its own: before the outermost and after it.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        guard: Guard,
        *,
        before: Callable[[Call], Call | None],
        after: Callable[[], None],
        skipped: Callable[[], None],
        captured: Callable[[], None],
    ) -> None:
        self.fired = 0
        self._optimizer = optimizer
        self.guard = guard
        self._before = before
        self._after = after
        self._skipped = skipped
        self._captured = captured
        self._under_way = False
        self._nested = False
        hooks: tuple[Any, Any] = (_Hook(optimizer, self._begins), _Hook(optimizer, self._ends))
        self._handles = [
            optimizer.register_step_pre_hook(hooks[0]),
            optimizer.register_step_post_hook(hooks[1]),
        ]
        # First of all: another's hook may write to the weights, which must be what the step left.
        present = optimizer._optimizer_step_post_hooks
        for other in [number for number in present if number != self._handles[1].id]:
            present[other] = present.pop(other)
        follow_scalers(self)

    def remove(self) -> None:
        """Leave the optimizer as it was."""
        leave_scalers(self)
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def not_stepped(self, scaler: GradScaler, optimizer: Any) -> None:
        """Be told that a scaler was asked to step an optimizer and no hook was called."""

        def look() -> None:
            ours = unwrapped(optimizer) is self._optimizer
            if ours and scaler.is_enabled() and found_inf(scaler, optimizer):
                self.fired += 1
                self._skipped()

        self.guard(look)

    def _begins(self, call: Call) -> Call | None:
        self.fired += 1
        # A step that raised never came to its end, and looks like one that is still under way.
        self._nested = self._under_way and self._depth() > 1
        if self._nested:
            return None
        self._under_way = bool(self._optimizer.state) or not _fills_in_state()
        if self._under_way and _is_captured(self._optimizer):
            self._under_way = False
            self.guard(self._captured)
        if not self._under_way:
            return None
        return self.guard(lambda: self._before(call))

    def _ends(self, _: Call) -> None:
        if not self._under_way or (self._nested and self._depth() > 1):
            return
        self._under_way = False
        self.guard(self._after)

    def _depth(self) -> int:
        """Return how many steps of this optimizer the caller is in, one within another."""
        depth, frame = 0, sys._getframe()
        while frame is not None:
            inside = frame.f_code is _TORCH_STEP
            depth += inside and frame.f_locals.get("self") is self._optimizer
            frame = frame.f_back
        return depth


def _is_captured(optimizer: Optimizer) -> bool:
    """Tell whether what the optimizer does now goes into a CUDA graph instead of being done."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            return parameter.is_cuda and torch.cuda.is_current_stream_capturing()
    return False


def _fills_in_state() -> bool:
    """Tell whether the caller is in a step that is none of the training.

    torch.distributed.checkpoint makes one, at rate 0, where an optimizer has no state yet, to have
    something to load a checkpoint into.
    """
    module = sys.modules.get("torch.distributed.checkpoint.state_dict")
    makes = getattr(getattr(module, "_init_optim_state", None), "__code__", None)
    frame = sys._getframe() if makes is not None else None
    while frame is not None and frame.f_code is not makes:
        frame = frame.f_back
    return frame is not None


_not_compiled: Any = torch.compiler.disable(lambda work, call: work(call))
"""Does a hook's work in a step that is compiled, which is then compiled around it."""


class _Hook:
    """What torch calls; copied or pickled with its optimizer, it is one that does nothing."""

    def __init__(
        self,
        optimizer: Optimizer | None = None,
        work: Callable[[Call], Call | None] | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._work = work

    def __call__(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Call | None:
        if self._work is None or optimizer is not self._optimizer:
            return None
        if torch.compiler.is_dynamo_compiling():  # not always: to go around it takes 10 µs
            return _not_compiled(self._work, (args, kwargs))
        return self._work((args, kwargs))

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()
