"""Steps that ``torch.amp.GradScaler`` leaves out: no hook of the optimizer tells of them."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, Final, Protocol

import torch
from torch.amp.grad_scaler import GradScaler


class Follower(Protocol):
    """One that wants to know when a scaler did not step."""

    fired: int
    """How many hooks of its optimizer were called so far."""

    def not_stepped(self, scaler: GradScaler, optimizer: Any) -> None:
        """Be told that a scaler was asked to step and no hook was called; must not raise."""
        ...


_lock: Final = threading.Lock()
_followers: Final[list[Follower]] = []
_ours: Callable[..., Any] | None = None
_theirs: Callable[..., Any] = GradScaler.step


def follow_scalers(follower: Follower) -> None:
    """Have it told, until :func:`leave_scalers`.

    Without a fused optimizer the scaler looks for infinities itself and does not call the
    optimizer at all, so its class must be asked: its ``step`` is wrapped while anyone follows.
    """
    global _ours, _theirs  # noqa: PLW0603 — the class is one for the whole process
    with _lock:
        _followers.append(follower)
        if GradScaler.step is not _ours:
            _theirs = GradScaler.step
            _ours = GradScaler.step = _telling(_theirs)


def leave_scalers(follower: Follower) -> None:
    """Tell it nothing more; the last to leave has the class as it was."""
    with _lock:
        if follower in _followers:
            _followers.remove(follower)
        # Somebody else may have wrapped our wrapper: then it stays, and only hands the call on.
        if not _followers and GradScaler.step is _ours:
            GradScaler.step = _theirs


def found_inf(scaler: GradScaler, optimizer: Any) -> bool:
    """Return whether the scaler found infinities among the optimizer's gradients.

    It has just read the same numbers to decide, so nothing is left to wait for.
    """
    # torch has no public way to ask
    found = scaler._found_inf_per_device(optimizer)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return any(one.item() for one in found.values())


def _telling(step: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(step)
    def telling(scaler: GradScaler, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        before = _counts()
        result = step(scaler, optimizer, *args, **kwargs)
        _tell(before, scaler, optimizer)
        return result

    return telling


# Not to be traced where the training compiles its whole step: its guards would not hold.


@torch.compiler.disable()  # pyright: ignore[reportUntypedFunctionDecorator]
def _counts() -> list[tuple[Follower, int]]:
    return [(follower, follower.fired) for follower in _followers]


@torch.compiler.disable()  # pyright: ignore[reportUntypedFunctionDecorator]
def _tell(before: list[tuple[Follower, int]], scaler: GradScaler, optimizer: Any) -> None:
    for follower, fired in before:
        if follower.fired == fired:
            follower.not_stepped(scaler, optimizer)
