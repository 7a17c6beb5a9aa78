"""Call the recorder before and after each step of one optimizer, once per step."""

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
"""Positional and keyword arguments of a call of ``step``; the first positional one is ``self``."""

_TORCH_STEP: Final[CodeType] = Optimizer.profile_hook_step(lambda _: None).__code__
"""Code object of the wrapper that torch puts around the ``step`` of each optimizer class.

The wrapper calls the step hooks. torch has no public function that says whether an optimizer's step
is running, but a stack frame with this code shows it, see :meth:`StepHooks._running_steps`.
"""


class Guard(Protocol):
    """Calls functions and never raises, such as a ``Failsafe``."""

    def __call__(self, work: Callable[[], Result], /) -> Result | None:
        """Call a function and return its result; None if the function raised or was not called."""
        ...


class StepHooks:
    """The recorder's step hooks of one optimizer, registered until :meth:`remove`.

    The hooks call the functions passed as parameters. If the ``step`` of a subclass calls the
    ``step`` of its parent class, torch calls the hooks for both. The functions are then called for
    the outer ``step`` only.

    Parameters
    ----------
    optimizer : Optimizer
        The optimizer.
    guard : Guard
        Calls all functions below, and handles their errors.
    before : callable
        Called before each step with the step's arguments. May return other arguments, to be passed
        to the step instead.
    after : callable
        Called after each step that did not raise.
    skipped : callable
        Called for a step that gradient scaling skipped because of infinite gradients.
    captured : callable
        Called instead of ``before`` and ``after`` for a step that is being captured in a CUDA
        graph. Measuring would add operations to the graph, and replaying a graph calls no hooks.

    Attributes
    ----------
    fired : int
        Number of times that torch called the hook before a step, plus the number of skipped steps.
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
        self._in_step = False
        self._nested = False
        hooks: tuple[Any, Any] = (
            _Hook(optimizer, self._before_step),
            _Hook(optimizer, self._after_step),
        )
        self._handles = [
            optimizer.register_step_pre_hook(hooks[0]),
            optimizer.register_step_post_hook(hooks[1]),
        ]
        # Our post hook runs before all others, since another one may change the weights.
        present: Any = optimizer._optimizer_step_post_hooks  # an OrderedDict
        present.move_to_end(self._handles[1].id, last=False)
        follow_scalers(self)

    def remove(self) -> None:
        """Remove the hooks."""
        leave_scalers(self)
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def not_stepped(self, scaler: GradScaler, optimizer: Any) -> None:
        """Call ``skipped`` if the scaler skipped this optimizer's step.

        Called after each call of ``GradScaler.step``, for any optimizer, during which torch called
        no hook of this optimizer.
        """

        def check() -> None:
            ours = unwrapped(optimizer) is self._optimizer
            if ours and scaler.is_enabled() and found_inf(scaler, optimizer):
                self.fired += 1
                self._skipped()

        self.guard(check)

    def _before_step(self, call: Call) -> Call | None:
        self.fired += 1
        # torch calls no post hook for a step that raised, so `_in_step` may still be True after
        # such a step. Only the stack shows whether the present step is nested in another one.
        self._nested = self._in_step and self._running_steps() > 1
        if self._nested:
            return None
        self._in_step = bool(self._optimizer.state) or not _initializes_state()
        if self._in_step and _is_captured(self._optimizer):
            self._in_step = False
            self.guard(self._captured)
        if not self._in_step:
            return None
        return self.guard(lambda: self._before(call))

    def _after_step(self, _: Call) -> None:
        if not self._in_step or (self._nested and self._running_steps() > 1):
            return
        self._in_step = False
        self.guard(self._after)

    def _running_steps(self) -> int:
        """Return how many calls of this optimizer's ``step`` are on the stack.

        Rarely called: only for nested steps, and for the first step after a step that raised.
        """
        running, frame = 0, sys._getframe()
        while frame is not None:
            is_step = frame.f_code is _TORCH_STEP
            running += is_step and frame.f_locals.get("self") is self._optimizer
            frame = frame.f_back
        return running


def _is_captured(optimizer: Optimizer) -> bool:
    """Return whether the optimizer's step is being captured in a CUDA graph."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            return parameter.is_cuda and torch.cuda.is_current_stream_capturing()
    return False


def _initializes_state() -> bool:
    """Return whether the current step only creates the optimizer's state, without training.

    To load a checkpoint into an optimizer without state, torch.distributed.checkpoint first calls
    the optimizer's ``step`` with learning rate 0, to create the state. Only the calling function on
    the stack distinguishes this call from a step of the training. Called only if the optimizer has
    no state.
    """
    module = sys.modules.get("torch.distributed.checkpoint.state_dict")
    code = getattr(getattr(module, "_init_optim_state", None), "__code__", None)
    frame = sys._getframe() if code is not None else None
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None


_not_compiled: Any = torch.compiler.disable(lambda work, call: work(call))
"""Calls a hook's function from a compiled step, without compiling the function."""


class _Hook:
    """A hook that torch calls before or after each step of one optimizer.

    When the optimizer is copied or pickled, its hooks are too. Such copies of a hook do nothing.
    """

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
        if torch.compiler.is_dynamo_compiling():  # only then: the call costs 10 µs
            return _not_compiled(self._work, (args, kwargs))
        return self._work((args, kwargs))

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()
