"""Detect steps that ``torch.amp.GradScaler`` skips, for which torch calls no optimizer hook."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, Final, Protocol

import torch
from torch.amp.grad_scaler import GradScaler


class Follower(Protocol):
    """An object that :func:`follow_scalers` informs about skipped steps."""

    fired: int
    """How often the step hooks of the follower's optimizer were called so far."""

    def not_stepped(self, scaler: GradScaler, optimizer: Any) -> None:
        """Handle a ``GradScaler.step`` during which ``fired`` did not change; must not raise."""
        ...


_lock: Final = threading.Lock()
_followers: Final[list[Follower]] = []
_wrapper: Callable[..., Any] | None = None
_wrapped: Callable[..., Any] = GradScaler.step


def follow_scalers(follower: Follower) -> None:
    """Inform a follower of skipped steps, until :func:`leave_scalers`.

    If the gradients of an optimizer that is not fused are infinite, ``GradScaler.step`` does not
    call the optimizer's ``step``, and torch calls no hook. To notice this, ``GradScaler.step`` is
    replaced by a wrapper while there are followers.
    """
    global _wrapper, _wrapped  # noqa: PLW0603 — the class is shared by the process
    with _lock:
        _followers.append(follower)
        if GradScaler.step is not _wrapper:
            _wrapped = GradScaler.step
            _wrapper = GradScaler.step = _observe(_wrapped)


def leave_scalers(follower: Follower) -> None:
    """Stop informing a follower. Restore ``GradScaler.step`` when no follower is left."""
    with _lock:
        if follower in _followers:
            _followers.remove(follower)
        # If other code has wrapped our wrapper, ours must stay. Without followers, it only calls
        # the function that it wraps.
        if not _followers and GradScaler.step is _wrapper:
            GradScaler.step = _wrapped


def found_inf(scaler: GradScaler, optimizer: Any) -> bool:
    """Return whether the scaler found infinite or NaN gradients of the optimizer.

    The scaler has just read the same flags, so reading them does not wait for the device again.
    """
    # torch has no public function for this
    found = scaler._found_inf_per_device(optimizer)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return any(one.item() for one in found.values())


def _observe(step: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(step)
    def observed_step(scaler: GradScaler, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        before = _hook_calls()
        result = step(scaler, optimizer, *args, **kwargs)
        _inform(before, scaler, optimizer)
        return result

    return observed_step


# torch.compile must not trace the next two functions as part of a compiled training step: the
# guards that it derives from the changing `fired` would fail.


@torch.compiler.disable()  # pyright: ignore[reportUntypedFunctionDecorator]
def _hook_calls() -> list[tuple[Follower, int]]:
    return [(follower, follower.fired) for follower in _followers]


@torch.compiler.disable()  # pyright: ignore[reportUntypedFunctionDecorator]
def _inform(before: list[tuple[Follower, int]], scaler: GradScaler, optimizer: Any) -> None:
    for follower, fired in before:
        if follower.fired == fired:
            follower.not_stepped(scaler, optimizer)
